"""What all checkpoints have in common, whatever format they are saved in."""

import abc
import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.source import Source, printable
from keras_wavg.files.streaming import Block

SUFFIXES = (".weights.h5", ".weights.json", ".keras")

PROVENANCE = "keras_wavg"
"""The attribute of the root that tells how a file was made."""

PARTS = ("weights", "random state", "optimizer", "metrics", "average")
"""What a checkpoint has: weights of layers, the state of random numbers, of the
optimizer, of metrics, and of callbacks of this library."""


class Contents(Structure):
    """The structure of a checkpoint, whatever files it is in.

    Checkpoints of one run share one.
    """

    def part_of(self, path: str) -> str:
        """To which part of a checkpoint a path inside belongs.

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
    def step_paths(self) -> Sequence[str]:
        """Where the optimizer may count its steps, the likeliest first."""
        # Of an optimizer that another one is around, and of one itself.
        return "optimizer/inner_optimizer/vars/0", "optimizer/vars/0"

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """The arrays that are variables of the model's layers."""
        return {
            path: array
            for path, array in self.arrays.items()
            if self.part_of(path) == "weights"
        }


@dataclass(frozen=True)
class Checkpoint(abc.ABC):
    """The saved state of a model, open for reading.

    Args:
        path: `pathlib.Path` by which it was opened.
        contents: A `Contents`.
        sources: Sequence of the `Source`s of its HDF5 files.
        origin: The remote path of which `path` is a copy, or `None`.
    """

    path: Path
    contents: Contents
    sources: Sequence[Source] = ()
    origin: Path | None = field(default=None, kw_only=True)

    @property
    def given(self) -> Path:
        """The path that it is known by."""
        return self.origin or self.path

    @property
    def name(self) -> str:
        """The path, without anything that a terminal would obey."""
        return printable(str(self.given))

    @property
    def groups(self) -> Mapping[str, Attributes]:
        """From the path of each group to its attributes."""
        return self.contents.groups

    @property
    def arrays(self) -> Mapping[str, Array]:
        """From the path of each array to what it is."""
        return self.contents.arrays

    @property
    def weights(self) -> Mapping[str, Array]:
        """The arrays that are variables of the model's layers."""
        return self.contents.weights

    @property
    def attributes(self) -> Attributes:
        """What is written beside the arrays, as strings by their names."""
        return self.groups[""]

    @property
    def provenance(self) -> str | None:
        """What this library wrote in it, as JSON."""
        return self.attributes.get(PROVENANCE)

    @abc.abstractmethod
    def read_into(self, view: memoryview, block: Block) -> None:
        """Fill a view with the bytes of a block.

        Raises:
            ValueError: If they are not there.
            OSError: If they cannot be read.
        """

    @abc.abstractmethod
    def refuse(self, why: str, at: str) -> NoReturn:
        """Raise the error that names it, and the path of an array inside it."""

    @abc.abstractmethod
    def read_config(self) -> str | bytes | None:
        """The config of the model, as JSON, or `None` if there is none.

        Raises:
            ValueError: If it is damaged.
        """

    @abc.abstractmethod
    def is_at(self, path: Path) -> bool:
        """Whether `path` leads to it, or to one of its files."""

    @abc.abstractmethod
    def check_unchanged(self) -> None:
        """Refuse it if a file has been written to since it was opened.

        Raises:
            ValueError: If one was.
        """


def suffix_of(path: Path, name: str) -> str:
    """The suffix of a checkpoint.

    Raises:
        ValueError: If it is none of `SUFFIXES`. `name` is what the error calls
            the path.
    """
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise ValueError(
        f"`{name}` must end in '.weights.h5', '.weights.json' or '.keras'. "
        f"Received: {name}={str(path)!r}"
    )


def archive_room() -> Any:
    """The module for `.keras` files: not all need it, and it takes a while."""
    return importlib.import_module("keras_wavg.files.archive")
