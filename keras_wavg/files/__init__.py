"""Saved weights: read, compared, averaged and written without Keras.

    keras_wavg.average_checkpoints(["1.keras", "2.keras"], "mean.keras")

Modules in reading order: `checkpoint` (what all formats have in common),
`hdf5_checkpoint` and `hdf5/`, `orbax/`, `remote` (URLs), `checkpoint_opener`
(which format it is), `file_plan` and `open_plan` (what is done with each
array), `streaming` (blocks and threads), `block_averager` and `block_sum` (the
average of a block), `open_output` (what is written), `execution` and
`multi_process` (the whole average, in one process or several),
`average_report`, `average` (the public function), `synthesis` (averages of
another horizon).

Nothing in this package imports Keras, a backend or h5py. Only to convert Orbax
checkpoints to a file, `keras_wavg.model_from_config` builds the model in Keras.
"""
