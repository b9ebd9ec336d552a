"""Files that are not read, and the way from each to one that is.

A kind is known by the name of the file, or by how the file begins.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_wavg.files.remote import is_remote, located

_SAVE = "`model.save_weights('a.weights.h5')`"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: String, what it is called.
        way: String, how to a file that is read.
    """

    name: str
    way: str

    def __str__(self) -> str:
        return f"It is {self.name}: {self.way}"


_KERAS_2 = Kind(
    "a file of Keras 2",
    "load it in the model, `model.load_weights(path)`, and save that by "
    f"{_SAVE}",
)
_SAFETENSORS = Kind(
    "a file of safetensors",
    "read it by `safetensors.numpy.load_file(path)`, set the weights of the "
    f"Keras model, and save it by {_SAVE}",
)
_TORCH = Kind(
    "a file of torch",
    "read it by `torch.load(path)`, set the weights of the Keras model, and "
    f"save it by {_SAVE}",
)
_TENSORFLOW = Kind(
    "a checkpoint of TensorFlow",
    "restore it by `tf.train.Checkpoint(model).restore(prefix)`, and save the "
    f"model by {_SAVE}",
)
_SAVED_MODEL = Kind(
    "a SavedModel",
    "load it by `tf.saved_model.load(folder)`, set the weights of the Keras "
    f"model, and save it by {_SAVE}",
)
_ORBAX = Kind(
    "a checkpoint of Orbax that Keras has not written",
    "restore it by Orbax, set the weights of the Keras model, and save it by "
    f"{_SAVE}",
)
_NUMPY = Kind(
    "a file of NumPy",
    f"read it by `numpy.load(path)`, `model.set_weights(...)`, and {_SAVE}",
)
_REMOTE = Kind(
    "not on this machine",
    "pass its URL as a string, which `pathlib.Path` would change",
)

_BY_NAME = (
    (r"[a-z][a-z0-9+.-]+:/.*", _REMOTE),
    (r".*(?<!\.weights)\.(h5|hdf5)", _KERAS_2),
    (r".*\.safetensors", _SAFETENSORS),
    (r".*\.(pt|pth|bin|ckpt)", _TORCH),
    (r".*\.(index|data-\d{5}-of-\d{5})|(.*/)?checkpoint", _TENSORFLOW),
    (r".*\.np[yz]", _NUMPY),
)
_IN_FOLDER = (
    ("saved_model.pb", _SAVED_MODEL),
    ("checkpoint", _TENSORFLOW),
    ("_METADATA", _ORBAX),
)
_BEGINNINGS = (
    (rb"PK\x03\x04.{0,400}data\.pkl", _TORCH),
    (rb".{8}\{\"", _SAFETENSORS),
    (rb"\x89HDF.*(layer_names|weight_names)", _KERAS_2),
    (rb"\x93NUMPY", _NUMPY),
)
_LOOKED_AT = 1 << 16


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """What a file is that is not read, or `None` if nobody knows.

    Args:
        path: The path, or a URL.
    """
    found = located(path)
    if is_remote(found):
        return kind_named(found.name)
    if found.is_dir():
        named = (kind for n, kind in _IN_FOLDER if any(found.glob(n)))
        return next(named, None)
    return _by_beginning(found) or kind_named(str(path))


def kind_named(text: str) -> Kind | None:
    """What a file of this name is, if it is not one that is read."""
    for pattern, kind in _BY_NAME:
        if re.fullmatch(pattern, text, re.IGNORECASE):
            return kind
    return None


def _by_beginning(path: Path) -> Kind | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begins = file.read(_LOOKED_AT)
    for pattern, kind in _BEGINNINGS:
        if re.match(pattern, begins, re.DOTALL):
            return kind
    return None
