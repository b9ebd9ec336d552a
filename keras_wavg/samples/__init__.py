"""Averages in host memory, most of which keep the samples they are made of.

They are sampled rarely, so they are plain NumPy, the same on every backend.
Each has the verbs of `keras_wavg.backend`, and `kept` and `keep`, for what
there is besides the average.
"""
