"""One interface over `.weights.h5`, sharded `.weights.json` and `.keras`."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_wavg.files import archive, shards
from keras_wavg.files.hdf5.reading import read_structure
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.hdf5.window import Window
from keras_wavg.files.source import Source, printable

SUFFIXES = (".weights.h5", ".weights.json", ".keras")

# A process may have about a thousand files open. Above this, each read opens
# its file for itself.
_MOST_OPEN = 200
# `libhdf5` takes about 1 KiB for each group and array, with their attributes.
_MOST_PER_OBJECT = 1 << 13
_PIECE = 1 << 20

PROVENANCE = "keras_wavg"
"""The attribute of the root that tells how a file was made."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An array, and the file that has its bytes."""

    source: Source
    array: Array

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill a view with bytes of the array, from its byte `start` on."""
        self.source.read_into(view, self.array.offset + start)


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a model, open for reading.

    Args:
        path: `pathlib.Path` by which it was opened.
        sources: Sequence of the `Source`s of its HDF5 files.
        groups: Dict from the path of each group to its attributes.
        arrays: Dict from the path of each array to a `Stored`.
    """

    path: Path
    sources: Sequence[Source]
    groups: Mapping[str, Attributes]
    arrays: Mapping[str, Stored]

    @property
    def name(self) -> str:
        """The path, without anything that a terminal would obey."""
        return printable(str(self.path))

    @functools.cached_property
    def weights(self) -> dict[str, Stored]:
        """The arrays that are variables of the model's layers."""
        return {p: a for p, a in self.arrays.items() if part_of(p) == "weights"}

    @property
    def provenance(self) -> str | None:
        """What this library wrote in it, as JSON."""
        return self.groups[""].get(PROVENANCE)

    def is_at(self, path: Path) -> bool:
        """Whether `path` leads to one of its files."""
        files = [self.path, *(source.path for source in self.sources)]
        return path.exists() and any(path.samefile(file) for file in files)

    def check_unchanged(self) -> None:
        """Refuse it if a file has been written to since it was opened.

        Raises:
            ValueError: If one was.
        """
        for source in self.sources:
            source.check_unchanged()


def part_of(path: str) -> str:
    """To which part of a checkpoint a path inside belongs.

    Returns:
        One of `"weights"`, `"optimizer"` and `"average"`, the state of a
        callback of this library.

    Example:

    >>> part_of("layers/dense/vars/0"), part_of("optimizer/vars/1")
    ('weights', 'optimizer')
    """
    top = path.partition("/")[0]
    if top.startswith("~wavg_"):
        return "average"
    return "optimizer" if top == "optimizer" else "weights"


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
        f"Received: {name}={os.fspath(path)!r}"
    )


class Opener:
    """Opens checkpoints, and reads the same structure only once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Structure, bytes | None]] = {}
        self._opened = 0

    @contextlib.contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
        """Context with a checkpoint.

        Args:
            path: The file, by one of `SUFFIXES`.

        Yields:
            A `Checkpoint`.

        Raises:
            ValueError: If it is not as Keras writes it.
            OSError: If it cannot be opened.
        """
        path = Path(path)
        with contextlib.ExitStack() as stack:
            sources: list[Source] = []
            groups: dict[str, Attributes] = {}
            arrays: dict[str, Stored] = {}
            for source, listed in _sources(path):
                stack.enter_context(source)
                structure = self._structure(source)
                self._opened += 1
                if self._opened > _MOST_OPEN:
                    source.close()
                _check_index(source, structure, listed)
                repeated = (
                    arrays.keys() & structure.arrays.keys()
                    | arrays.keys() & structure.groups.keys()
                    | groups.keys() & structure.arrays.keys()
                )
                if repeated:
                    source.refuse("another shard has it too", min(repeated))
                sources.append(source)
                for group, attributes in structure.groups.items():
                    groups[group] = {**groups.get(group, {}), **attributes}
                for name, array in structure.arrays.items():
                    arrays[name] = Stored(source, array)
            yield Checkpoint(path, sources, groups, arrays)

    def _structure(self, source: Source) -> Structure:
        # The files of one run differ in their numbers alone. Bytes that are
        # the same around these have the same structure.
        known = self._known.get(source.size)
        if known and _digest(source, known[0]) == known[1] is not None:
            return known[0]
        structure = read_structure(source)
        self._known[source.size] = structure, _digest(source, structure)
        return structure


def _sources(path: Path) -> Iterator[tuple[Source, set[str] | None]]:
    suffix = suffix_of(path, "path")
    if suffix == ".keras":
        yield archive.open_weights(path), None
    elif suffix == ".weights.h5":
        yield Source(path), None
    else:
        for name, groups in shards.read_index(path).items():
            yield Source(path.with_name(name)), groups


def _check_index(
    source: Source, structure: Structure, listed: set[str] | None
) -> None:
    if listed is None:
        return
    found = {path.rpartition("/")[0] for path in structure.arrays}
    if found != listed:
        source.refuse(
            "the index of the shards says otherwise", min(found ^ listed)
        )


def _digest(source: Source, structure: Structure) -> bytes | None:
    """Of all bytes that are not those of an array, unless they are too many."""
    arrays = [array for array in structure.arrays.values() if array.nbytes]
    objects = len(structure.groups) + len(structure.arrays)
    if source.size - sum(a.nbytes for a in arrays) > _MOST_PER_OBJECT * objects:
        return None
    digest, window, start = hashlib.sha256(), Window(source), 0
    arrays.sort(key=lambda array: array.offset)
    # An empty one at the end, for what comes after the last.
    for array in (*arrays, Array("uint8", (0,), source.size)):
        for at in range(start, array.offset, _PIECE):
            digest.update(window.read(at, min(_PIECE, array.offset - at)))
        start = array.offset + array.nbytes
    return digest.digest()
