"""Saved weights: read, compared, averaged and written without Keras.

    keras_wavg.average_checkpoints(["1.keras", "2.keras"], "mean.keras")

Nothing in this folder imports Keras, a backend or h5py. Only where folders of
Orbax become a file, Keras builds the model, in `keras_wavg.conversion`.
"""
