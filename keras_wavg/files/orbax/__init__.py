"""Orbax checkpoints, as `keras.callbacks.OrbaxCheckpoint` writes them.

A checkpoint is the folder of a step, in a root folder that has a step for each
time that the model was saved. Its arrays are stored in chunks, by tensorstore.
"""
