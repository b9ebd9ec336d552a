"""Warnings that name the user's line."""

import inspect
import warnings
from pathlib import Path

import keras

_INSIDE = tuple(
    f"{Path(module).parent}/" for module in (__file__, keras.__file__)
)


def warn(message: str) -> None:
    """Warn at the latest line that is neither ours nor Keras', each time.

    Python shows what it has shown of a line only once, and `warnings.warn`
    takes a line of Keras for the user's.

    Args:
        message: String, what is the matter and what to do.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
        if not frame.f_code.co_filename.startswith(_INSIDE):
            break
    if frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        warnings.warn_explicit(message, UserWarning, file, line)
