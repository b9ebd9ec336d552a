"""Recognizes files that are not supported, and says how to convert them.

A format is recognized by the name of a file or by its first bytes.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_wavg.files.remote import as_path, is_remote

_SAVE = "`model.save_weights('a.weights.h5')`"


@dataclass(frozen=True)
class UnsupportedFormat:
    """A format that is not supported.

    Args:
        name: String, what a file of this format is called.
        instructions: String, how to convert it.
    """

    name: str
    instructions: str

    def __str__(self) -> str:
        return f"It is {self.name}: {self.instructions}"


_KERAS_2 = UnsupportedFormat(
    "a Keras 2 file",
    "load it into the model with `model.load_weights(path)`, and save the "
    f"model with {_SAVE}",
)
_SAFETENSORS = UnsupportedFormat(
    "a safetensors file",
    "read it with `safetensors.numpy.load_file(path)`, set the weights of the "
    f"Keras model, and save it with {_SAVE}",
)
_TORCH = UnsupportedFormat(
    "a torch file",
    "read it with `torch.load(path)`, set the weights of the Keras model, and "
    f"save it with {_SAVE}",
)
_TENSORFLOW = UnsupportedFormat(
    "a TensorFlow checkpoint",
    "restore it with `tf.train.Checkpoint(model).restore(prefix)`, and save "
    f"the model with {_SAVE}",
)
_SAVED_MODEL = UnsupportedFormat(
    "a SavedModel",
    "load it with `tf.saved_model.load(directory)`, set the weights of the "
    f"Keras model, and save it with {_SAVE}",
)
_ORBAX = UnsupportedFormat(
    "an Orbax checkpoint that was not written by Keras",
    "restore it with Orbax, set the weights of the Keras model, and save it "
    f"with {_SAVE}",
)
_NUMPY = UnsupportedFormat(
    "a NumPy file",
    "read it with `numpy.load(path)`, set the weights with "
    f"`model.set_weights(...)`, and save the model with {_SAVE}",
)
_REMOTE = UnsupportedFormat(
    "a URL that was passed as a `pathlib.Path`, which changes it",
    "pass the URL as a string",
)

_BY_NAME = (
    (r"[a-z][a-z0-9+.-]+:/.*", _REMOTE),
    (r".*(?<!\.weights)\.(h5|hdf5)", _KERAS_2),
    (r".*\.safetensors", _SAFETENSORS),
    (r".*\.(pt|pth|bin|ckpt)", _TORCH),
    (r".*\.(index|data-\d{5}-of-\d{5})|(.*/)?checkpoint", _TENSORFLOW),
    (r".*\.np[yz]", _NUMPY),
)
_BY_FILE_IN_DIRECTORY = (
    ("saved_model.pb", _SAVED_MODEL),
    ("checkpoint", _TENSORFLOW),
    ("_METADATA", _ORBAX),
)
_BY_FIRST_BYTES = (
    (rb"PK\x03\x04.{0,400}data\.pkl", _TORCH),
    (rb".{8}\{\"", _SAFETENSORS),
    (rb"\x89HDF.*(layer_names|weight_names)", _KERAS_2),
    (rb"\x93NUMPY", _NUMPY),
)
_MAX_BYTES = 1 << 16


def identify_format(path: str | os.PathLike[str]) -> UnsupportedFormat | None:
    """Recognize the format of a file that is not supported.

    Args:
        path: String or path-like, a path or URL.

    Returns:
        An `UnsupportedFormat`, or `None` if it is not recognized.
    """
    place = as_path(path)
    if is_remote(place):
        return format_of_name(place.name)
    if place.is_dir():
        found = (f for n, f in _BY_FILE_IN_DIRECTORY if any(place.glob(n)))
        return next(found, None)
    return _format_of_content(place) or format_of_name(str(path))


def format_of_name(name: str) -> UnsupportedFormat | None:
    """The unsupported format that files of this name have, if any."""
    for pattern, found in _BY_NAME:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return found
    return None


def _format_of_content(path: Path) -> UnsupportedFormat | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        first_bytes = file.read(_MAX_BYTES)
    for pattern, found in _BY_FIRST_BYTES:
        if re.match(pattern, first_bytes, re.DOTALL):
            return found
    return None
