"""Saved weights: read, compared, averaged and written without Keras.

    keras_wavg.average_checkpoints(["1.keras", "2.keras"], "mean.keras")

In the order in which to read: `checkpoint` (what all formats have in common),
`hdf5_checkpoint` and `hdf5/`, `orbax/`, `remote` (URLs), `opener` (which of
them), `file_plan` and `planning` (what becomes of each array), `streaming`
(blocks and threads), `summing` and `total` (one block), `outputs` (what is
written), `execution` and `sharing` (all together, by one process or several),
`average` (the function), `synthesis` (any horizon).

Nothing in this folder imports Keras, a backend or h5py. Only where folders of
Orbax become a file, Keras builds the model, in `keras_wavg.conversion`.
"""
