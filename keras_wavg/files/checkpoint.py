"""One interface over `.weights.h5`, sharded `.weights.json` and `.keras`."""

import contextlib
import functools
import hashlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keras_wavg.files import shards
from keras_wavg.files.foreign import kind_of
from keras_wavg.files.hdf5.reading import read_structure
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.hdf5.window import Window
from keras_wavg.files.source import Source, printable

SUFFIXES = (".weights.h5", ".weights.json", ".keras")

# A process may have a thousand files open, on macOS 256. Above this, each read
# opens its file for itself.
_MOST_OPEN = 128
# `libhdf5` takes about 1 KiB for each group and array, with their attributes.
_MOST_PER_OBJECT = 1 << 13
_PIECE = 1 << 20
_SHARD = re.compile(r"(?P<base>.*)_\d{5}\.weights\.h5")

Gap = tuple[int, int]
"""First byte and length."""

PROVENANCE = "keras_wavg"
"""The attribute of the root that tells how a file was made."""


class Contents(Structure):
    """The structure of a checkpoint, whatever files it is in.

    Checkpoints of one run share one.
    """

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """The arrays that are variables of the model's layers."""
        return {p: a for p, a in self.arrays.items() if part_of(p) == "weights"}


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a model, open for reading.

    Args:
        path: `pathlib.Path` by which it was opened.
        sources: Sequence of the `Source`s of its HDF5 files.
        contents: A `Contents`.
        homes: Dict from the path of each array to its `Source`, where there are
            several.
    """

    path: Path
    sources: Sequence[Source]
    contents: Contents
    homes: Mapping[str, Source]

    @property
    def name(self) -> str:
        """The path, without anything that a terminal would obey."""
        return printable(str(self.path))

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
    def provenance(self) -> str | None:
        """What this library wrote in it, as JSON."""
        return self.groups[""].get(PROVENANCE)

    def source_of(self, path: str) -> Source:
        """The file that an array is in."""
        return self.homes[path] if self.homes else self.sources[0]

    def read_into(self, path: str, view: memoryview, start: int) -> None:
        """Fill a view with bytes of an array, from its byte `start` on."""
        offset = self.contents.arrays[path].offset + start
        self.source_of(path).read_into(view, offset)

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


def archive_room() -> Any:
    """The module for `.keras` files: not all need it, and it takes a while."""
    return importlib.import_module("keras_wavg.files.archive")


class _Known(NamedTuple):
    contents: Contents
    gaps: Sequence[Gap]
    digest: bytes


def checkpoints_in(folder: Path) -> list[Path]:
    """The files of a folder that are called as checkpoints, by their names."""
    return sorted(filter(_is_checkpoint, folder.iterdir()))


def _is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a checkpoint, and not of a part of one."""
    shard = _SHARD.fullmatch(path.name)
    if shard and path.with_name(f"{shard['base']}.weights.json").exists():
        return False
    return path.name.endswith(SUFFIXES)


class Opener:
    """Opens checkpoints, and reads the same structure only once."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
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
        with contextlib.ExitStack() as stack:
            try:
                checkpoint = self._checkpoint(Path(path), stack)
            except (ValueError, FileNotFoundError) as error:
                if kind := kind_of(path):
                    raise ValueError(f"{error} {kind}.") from error
                raise
            yield checkpoint

    def _checkpoint(
        self, path: Path, stack: contextlib.ExitStack
    ) -> Checkpoint:
        parts: list[tuple[Source, Contents]] = []
        for source, listed in _sources(path):
            stack.enter_context(source)
            contents = self._contents(source)
            _check_index(source, contents, listed)
            parts.append((source, contents))
            self._opened += 1
            if self._opened > _MOST_OPEN:
                source.close()
        return _checkpoint(path, parts)

    def _contents(self, source: Source) -> Contents:
        # The files of one run differ in their numbers alone. Bytes that are
        # the same around these have the same structure.
        known = self._known.get(source.size)
        if known and _digest(source, known.gaps) == known.digest:
            return known.contents
        read = read_structure(source)
        contents, gaps = Contents(read.groups, read.arrays), _gaps(source, read)
        if gaps is not None:
            known = _Known(contents, gaps, _digest(source, gaps))
            self._known[source.size] = known
        return contents


def _checkpoint(
    path: Path, parts: Sequence[tuple[Source, Contents]]
) -> Checkpoint:
    sources = [source for source, _ in parts]
    if len(parts) == 1:
        return Checkpoint(path, sources, parts[0][1], {})
    merged = Contents()
    homes: dict[str, Source] = {}
    for source, part in parts:
        repeated = (
            merged.arrays.keys() & (part.arrays.keys() | part.groups.keys())
        ) | (merged.groups.keys() & part.arrays.keys())
        if repeated:
            source.refuse("another shard has it too", min(repeated))
        merged.arrays.update(part.arrays)
        homes |= dict.fromkeys(part.arrays, source)
        for group, attributes in part.groups.items():
            merged.groups[group] = {
                **merged.groups.get(group, {}),
                **attributes,
            }
    return Checkpoint(path, sources, merged, homes)


def _sources(path: Path) -> Iterator[tuple[Source, set[str] | None]]:
    suffix = suffix_of(path, "path")
    if suffix == ".keras":
        yield archive_room().open_weights(path), None
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


def _gaps(source: Source, structure: Structure) -> list[Gap] | None:
    """Where the bytes are that are not those of an array, unless too many."""
    arrays = [array for array in structure.arrays.values() if array.nbytes]
    objects = len(structure.groups) + len(structure.arrays)
    if source.size - sum(a.nbytes for a in arrays) > _MOST_PER_OBJECT * objects:
        return None
    gaps, start = [], 0
    arrays.sort(key=lambda array: array.offset)
    # An empty one at the end, for what comes after the last.
    for array in (*arrays, Array("uint8", (0,), source.size)):
        pieces = range(start, array.offset, _PIECE)
        gaps += [(at, min(_PIECE, array.offset - at)) for at in pieces]
        start = array.offset + array.nbytes
    return gaps


def _digest(source: Source, gaps: Sequence[Gap]) -> bytes:
    digest, window = hashlib.sha256(), Window(source)
    for start, size in gaps:
        digest.update(window.read(start, size))
    return digest.digest()
