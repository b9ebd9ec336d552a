"""Callbacks that average weights while `fit` trains them."""

from keras_wavg.callbacks.ema import EMA

__all__ = ["EMA"]
