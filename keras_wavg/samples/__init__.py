"""Averages that keep the samples they are made of, in host memory.

They are sampled once an epoch or once a cycle, so they are plain NumPy, the
same on every backend. Each has the verbs of `keras_wavg.backend`, and `kept`
and `keep`, for what there is besides the average.
"""
