"""Checkpoints in HDF5: `.weights.h5`, sharded `.weights.json` and `.keras`."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from keras_wavg.files import shards
from keras_wavg.files.checkpoint import (
    Checkpoint,
    Contents,
    archive_room,
    suffix_of,
)
from keras_wavg.files.hdf5.reading import read_structure
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.hdf5.window import Window
from keras_wavg.files.source import Source
from keras_wavg.files.streaming import Block

# A process may have a thousand files open, on macOS 256. Above this, each read
# opens its file for itself.
_MOST_OPEN = 128
# `libhdf5` takes about 1 KiB for each group and array, with their attributes.
_MOST_PER_OBJECT = 1 << 13
_PIECE = 1 << 20

Gap = tuple[int, int]
"""First byte and length."""


@dataclass(frozen=True)
class HDF5Checkpoint(Checkpoint):
    """The saved state of a model in HDF5 files.

    Args:
        homes: Dict from the path of each array to its `Source`, where there are
            several.
    """

    homes: Mapping[str, Source] = field(default_factory=dict)

    def read_into(self, view: memoryview, block: Block) -> None:
        """See `Checkpoint`."""
        offset = self.arrays[block.path].offset + block.start
        self._source_of(block.path).read_into(view, offset)

    def refuse(self, why: str, at: str) -> NoReturn:
        """See `Checkpoint`."""
        self._source_of(at).refuse(why, at)

    def read_config(self) -> bytes | None:
        """See `Checkpoint`."""
        if not self.path.name.endswith(".keras"):
            return None
        config: bytes = archive_room().read_config(self.path)
        return config

    def is_at(self, path: Path) -> bool:
        """See `Checkpoint`."""
        if self.origin is not None:
            return str(self.origin) == str(path)
        files = [self.path, *(source.path for source in self.sources)]
        return path.exists() and any(path.samefile(file) for file in files)

    def check_unchanged(self) -> None:
        """See `Checkpoint`."""
        for source in self.sources:
            source.check_unchanged()

    def _source_of(self, path: str) -> Source:
        """The file that an array is in."""
        return self.homes[path] if self.homes else self.sources[0]


class _Known(NamedTuple):
    contents: Contents
    gaps: Sequence[Gap]
    digest: bytes


class HDF5Opener:
    """Opens checkpoints in HDF5, and reads the same structure only once."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._opened = 0

    def open(self, path: Path, stack: contextlib.ExitStack) -> Checkpoint:
        """A checkpoint, open until a stack of contexts ends.

        Raises:
            ValueError: If it is not as Keras writes it.
            OSError: If it cannot be opened.
        """
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
        return HDF5Checkpoint(path, parts[0][1], sources)
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
    return HDF5Checkpoint(path, merged, sources, homes)


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
