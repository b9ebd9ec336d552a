"""The interface of checkpoints in every format."""

import abc
import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from keras_wavg.files.error_text import printable
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.input_file import InputFile
from keras_wavg.files.streaming import Block

SUFFIXES = (".weights.h5", ".weights.json", ".keras")

PROVENANCE = "keras_wavg"
"""The root attribute that records how a file was made."""

PARTS = ("weights", "random state", "optimizer", "metrics", "average")
"""The parts of a checkpoint: the weights of layers, and the states of random
number generators, of the optimizer, of metrics and of averages."""


class Contents(Structure):
    """The structure of a checkpoint. Checkpoints of one run share an instance.

    Args:
        groups: See `Structure`.
        arrays: See `Structure`.
    """

    def part_of(self, path: str) -> str:
        """Return the part of a checkpoint that an array or a group belongs to.

        Args:
            path: String, the path inside the checkpoint.

        Returns:
            One of `PARTS`.

        Example:

        >>> [Contents().part_of(p) for p in ("layers/dense", "optimizer/vars")]
        ['weights', 'optimizer']
        """
        top = path.partition("/")[0]
        if top.startswith("~wavg_"):
            return "average"
        return "optimizer" if top == "optimizer" else "weights"

    @property
    def step_count_paths(self) -> Sequence[str]:
        """Paths where the optimizer may count its steps, likeliest first."""
        # Of an optimizer that wraps another one, and of a plain optimizer.
        return "optimizer/inner_optimizer/vars/0", "optimizer/vars/0"

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """Dict of the arrays that are variables of the model's layers."""
        return {
            path: array
            for path, array in self.arrays.items()
            if self.part_of(path) == "weights"
        }


@dataclass(frozen=True)
class Checkpoint(abc.ABC):
    """The saved state of a model, open for reading.

    Args:
        path: `pathlib.Path` of the file or directory that is read.
        contents: A `Contents`.
        files: Sequence of its HDF5 files, each an `InputFile`.
        remote_path: The remote path of which `path` is a copy, or `None`.
            Defaults to `None`.
    """

    path: Path
    contents: Contents
    files: Sequence[InputFile] = ()
    remote_path: Path | None = field(default=None, kw_only=True)

    @property
    def location(self) -> Path:
        """The remote path if there is one, otherwise the path."""
        return self.remote_path or self.path

    @property
    def name(self) -> str:
        """The location as printable text."""
        return printable(str(self.location))

    @property
    def groups(self) -> Mapping[str, Attributes]:
        """Dict from the path of each group to its attributes."""
        return self.contents.groups

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Dict from the path of each array to its `Array`."""
        return self.contents.arrays

    @property
    def weights(self) -> Mapping[str, Array]:
        """Dict of the arrays that are variables of the model's layers."""
        return self.contents.weights

    @property
    def attributes(self) -> Attributes:
        """Dict of the strings that are saved with the arrays."""
        return self.groups[""]

    @property
    def provenance(self) -> str | None:
        """JSON that records how this library made it, or `None`."""
        return self.attributes.get(PROVENANCE)

    @abc.abstractmethod
    def read_into(self, view: memoryview, block: Block) -> None:
        """Fill a view with the bytes of a block.

        Raises:
            ValueError: If the bytes are missing.
            OSError: If they cannot be read.
        """

    @abc.abstractmethod
    def refuse(self, why: str, inside: str) -> NoReturn:
        """Raise the error that names it, and the path of an array inside it."""

    @abc.abstractmethod
    def read_config(self) -> str | bytes | None:
        """Return the config of the model as JSON, or `None` if it has none.

        Raises:
            ValueError: If the config is damaged.
        """

    @abc.abstractmethod
    def is_at(self, path: Path) -> bool:
        """Return whether `path` is it, or one of its files."""

    @abc.abstractmethod
    def check_unchanged(self) -> None:
        """Check that no file was written to since the checkpoint was opened.

        Raises:
            ValueError: If a file was.
        """


def suffix_of(path: Path, name: str) -> str:
    """Return the suffix of a checkpoint.

    Args:
        path: `pathlib.Path`.
        name: String, the name of the argument, for the error.

    Raises:
        ValueError: If the path has none of `SUFFIXES`.
    """
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise ValueError(
        f"`{name}` must end in '.weights.h5', '.weights.json' or '.keras'. "
        f"Received: {name}={str(path)!r}"
    )


def keras_archive() -> Any:
    """Import the module for `.keras` files. It is slow, and rarely needed."""
    return importlib.import_module("keras_wavg.files.keras_archive")
