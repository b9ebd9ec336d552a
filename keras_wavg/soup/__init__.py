"""Averages of checkpoints that are selected by a score."""

from keras_wavg.soup.greedy import greedy_soup

__all__ = ["greedy_soup"]
