"""Warnings that are attributed to the user's code."""

import inspect
import warnings
from pathlib import Path

import keras

_INSIDE = tuple(
    f"{Path(module).parent}/" for module in (__file__, keras.__file__)
)


def warn(message: str) -> None:
    """Warn at the innermost line outside of this package and Keras.

    `warnings.warn` would attribute the warning to Keras, and would show it only
    once per line.

    Args:
        message: String, the problem and what to do.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
        if not frame.f_code.co_filename.startswith(_INSIDE):
            break
    if frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        warnings.warn_explicit(message, UserWarning, file, line)
