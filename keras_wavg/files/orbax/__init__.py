"""Orbax checkpoints, as `keras.callbacks.OrbaxCheckpoint` writes them.

A checkpoint is the directory of a step. The root directory has one step for
each time the model was saved. Arrays are stored in chunks by `tensorstore`.
"""
