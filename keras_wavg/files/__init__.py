"""Saved weights: read, compared, averaged and written without Keras.

    keras_wavg.average_checkpoints(["1.keras", "2.keras"], "mean.keras")

Nothing in this folder imports Keras, a backend or h5py.
"""
