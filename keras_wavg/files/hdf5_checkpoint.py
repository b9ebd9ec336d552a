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
    keras_archive,
    suffix_of,
)
from keras_wavg.files.hdf5.bounded_reader import BoundedReader
from keras_wavg.files.hdf5.parser import parse_structure
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.input_file import InputFile
from keras_wavg.files.streaming import Block

# A process may have a thousand open files, on macOS 256. Files above this
# number are opened again for each read.
_MAX_OPEN = 128
# `libhdf5` uses about 1 KiB for each group and array with its attributes.
_MAX_METADATA_PER_OBJECT = 1 << 13
_PIECE = 1 << 20

ByteRange = tuple[int, int]
"""The first byte, and the number of bytes."""


@dataclass(frozen=True)
class HDF5Checkpoint(Checkpoint):
    """The saved state of a model in one or several HDF5 files.

    Args:
        file_of: Dict from the path of each array to its `InputFile`. Empty if
            there is only one file.
    """

    file_of: Mapping[str, InputFile] = field(default_factory=dict)

    def read_into(self, view: memoryview, block: Block) -> None:
        """See `Checkpoint`."""
        offset = self.arrays[block.path].offset + block.start
        self._file_with(block.path).read_into(view, offset)

    def refuse(self, why: str, inside: str) -> NoReturn:
        """See `Checkpoint`."""
        self._file_with(inside).refuse(why, inside)

    def read_config(self) -> bytes | None:
        """See `Checkpoint`."""
        if not self.path.name.endswith(".keras"):
            return None
        config: bytes = keras_archive().read_config(self.path)
        return config

    def is_at(self, path: Path) -> bool:
        """See `Checkpoint`."""
        if self.remote_path is not None:
            return str(self.remote_path) == str(path)
        files = [self.path, *(file.path for file in self.files)]
        return path.exists() and any(path.samefile(file) for file in files)

    def check_unchanged(self) -> None:
        """See `Checkpoint`."""
        for file in self.files:
            file.check_unchanged()

    def _file_with(self, path: str) -> InputFile:
        return self.file_of[path] if self.file_of else self.files[0]


class _Parsed(NamedTuple):
    """The contents of a file, and a digest of the bytes outside its arrays."""

    contents: Contents
    gaps: Sequence[ByteRange]
    digest: bytes


class HDF5Opener:
    """Opens checkpoints in HDF5, and parses equal metadata only once."""

    def __init__(self) -> None:
        self._parsed: dict[int, _Parsed] = {}
        self._opened = 0

    def open(self, path: Path, stack: contextlib.ExitStack) -> Checkpoint:
        """Open a checkpoint, until a stack of contexts ends.

        Raises:
            ValueError: If Keras does not write such a file.
            OSError: If it cannot be opened.
        """
        parts: list[tuple[InputFile, Contents]] = []
        for file, groups in _files(path):
            stack.enter_context(file)
            contents = self._contents(file)
            _check_index(file, contents, groups)
            parts.append((file, contents))
            self._opened += 1
            if self._opened > _MAX_OPEN:
                file.close()
        return _merged(path, parts)

    def _contents(self, file: InputFile) -> Contents:
        # Checkpoints of one run differ only in the elements of their arrays. If
        # the other bytes are equal, so is the structure.
        parsed = self._parsed.get(file.size)
        if parsed and _digest(file, parsed.gaps) == parsed.digest:
            return parsed.contents
        structure = parse_structure(file)
        contents = Contents(structure.groups, structure.arrays)
        gaps = _gaps(file, structure)
        if gaps is not None:
            parsed = _Parsed(contents, gaps, _digest(file, gaps))
            self._parsed[file.size] = parsed
        return contents


def _merged(
    path: Path, parts: Sequence[tuple[InputFile, Contents]]
) -> Checkpoint:
    """The checkpoint whose shards are the parts."""
    files = [file for file, _ in parts]
    if len(parts) == 1:
        return HDF5Checkpoint(path, parts[0][1], files)
    merged = Contents()
    file_of: dict[str, InputFile] = {}
    for file, part in parts:
        repeated = (
            merged.arrays.keys() & (part.arrays.keys() | part.groups.keys())
        ) | (merged.groups.keys() & part.arrays.keys())
        if repeated:
            file.refuse("another shard has it too", min(repeated))
        merged.arrays.update(part.arrays)
        file_of |= dict.fromkeys(part.arrays, file)
        for group, attributes in part.groups.items():
            merged.groups[group] = {
                **merged.groups.get(group, {}),
                **attributes,
            }
    return HDF5Checkpoint(path, merged, files, file_of)


def _files(path: Path) -> Iterator[tuple[InputFile, set[str] | None]]:
    """Yield each file, and its groups if an index lists them."""
    suffix = suffix_of(path, "path")
    if suffix == ".keras":
        yield keras_archive().open_weights(path), None
    elif suffix == ".weights.h5":
        yield InputFile(path), None
    else:
        for name, groups in shards.read_index(path).items():
            yield InputFile(path.with_name(name)), groups


def _check_index(
    file: InputFile, structure: Structure, listed: set[str] | None
) -> None:
    if listed is None:
        return
    found = {path.rpartition("/")[0] for path in structure.arrays}
    if found != listed:
        file.refuse("the index of the shards differs", min(found ^ listed))


def _gaps(file: InputFile, structure: Structure) -> list[ByteRange] | None:
    """The bytes outside the arrays, or `None` if there are too many."""
    arrays = [array for array in structure.arrays.values() if array.nbytes]
    objects = len(structure.groups) + len(structure.arrays)
    outside = file.size - sum(array.nbytes for array in arrays)
    if outside > _MAX_METADATA_PER_OBJECT * objects:
        return None
    gaps, start = [], 0
    arrays.sort(key=lambda array: array.offset)
    # An empty array at the end of the file, for the bytes after the last array.
    for array in (*arrays, Array("uint8", (0,), file.size)):
        pieces = range(start, array.offset, _PIECE)
        gaps += [(at, min(_PIECE, array.offset - at)) for at in pieces]
        start = array.offset + array.nbytes
    return gaps


def _digest(file: InputFile, ranges: Sequence[ByteRange]) -> bytes:
    digest, reader = hashlib.sha256(), BoundedReader(file)
    for start, size in ranges:
        digest.update(reader.read(start, size))
    return digest.digest()
