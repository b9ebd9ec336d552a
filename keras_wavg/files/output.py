"""A checkpoint being written, in any of the three formats."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from keras_wavg import system
from keras_wavg.files import shards
from keras_wavg.files.checkpoint import PROVENANCE, archive_room, suffix_of
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.hdf5.writing import metadata, place
from keras_wavg.files.streaming import Block

_LARGE = 1 << 18


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the bytes of an array are to be written."""

    descriptor: int
    offset: int

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes of the array, from its byte `start` on."""
        begin, done = self.offset + start, 0
        while done < len(data):
            rest = data[done:]
            done += system.write_at(self.descriptor, rest, begin + done)
        if len(data) >= _LARGE:
            system.begin_to_store(self.descriptor, begin, len(data))


class Image:
    """An HDF5 file being written.

    Args:
        path: The file.
        structure: A `Structure`, whose offsets do not matter.
    """

    def __init__(self, path: Path, structure: Structure) -> None:
        self.path = path
        self.structure, self._end = place(structure)
        self._descriptor = system.open_to_write(path)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)

    def slot(self, path: str) -> Slot:
        """The place for an array."""
        return Slot(self._descriptor, self.structure.arrays[path].offset)

    def finish(self) -> None:
        """Write what is around the arrays."""
        head, tail = metadata(self.structure, self._end)
        Slot(self._descriptor, 0).write(memoryview(head), 0)
        Slot(self._descriptor, self._end).write(memoryview(tail), 0)


class Output:
    """A checkpoint being written.

    Args:
        path: `pathlib.Path` in an empty folder of its own, by whose suffix the
            format is chosen.
        structure: A `Structure`, whose offsets do not matter.
        like: `pathlib.Path` of the `.keras` file whose config a `.keras` file
            gets, or `None`.
        shard_size: Integer, the bytes of arrays in a shard.
    """

    def __init__(
        self,
        path: Path,
        structure: Structure,
        like: Path | None,
        shard_size: int,
    ) -> None:
        self._path = path
        self._like = like
        self._suffix = suffix_of(path, "output")
        self._images: list[Image] = []
        for number, part in enumerate(self._parts(structure, shard_size)):
            self._images.append(Image(self._image_path(number), part))
        self._home = {
            array: image
            for image in self._images
            for array in image.structure.arrays
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for image in self._images:
            image.close()

    @property
    def names(self) -> list[str]:
        """The names of the files that come out."""
        if self._suffix == ".weights.json":
            return [
                self._path.name,
                *(image.path.name for image in self._images),
            ]
        return [self._path.name]

    def write(self, data: memoryview, block: Block) -> None:
        """Write the bytes of a block."""
        self._home[block.path].slot(block.path).write(data, block.start)

    def finish(self, provenance: str) -> None:
        """Write what is around the arrays.

        Args:
            provenance: JSON, to be kept in the file.
        """
        root = self._images[0].structure.groups
        root[""] = {**root[""], PROVENANCE: provenance}
        for image in self._images:
            image.finish()
        if self._suffix == ".weights.json":
            self._write_index()
        if self._suffix == ".keras" and self._like:
            weights = self._images[0].path
            archive_room().write_archive(self._path, weights, self._like)
            weights.unlink()

    def _parts(
        self, structure: Structure, shard_size: int
    ) -> Iterator[Structure]:
        if self._suffix != ".weights.json":
            yield structure
            return
        groups = dict(structure.groups)
        for arrays in _shards(structure.arrays, shard_size):
            yield Structure(groups | _above(arrays, structure), arrays)
            groups = {"": {}}

    def _image_path(self, number: int) -> Path:
        if self._suffix == ".weights.h5":
            return self._path
        if self._suffix == ".keras":
            return self._path.with_name(archive_room().WEIGHTS)
        return self._path.with_name(shards.shard_name(self._path, number))

    def _write_index(self) -> None:
        total, names = 0, {}
        for image in self._images:
            arrays = image.structure.arrays
            total += sum(array.nbytes for array in arrays.values())
            groups = dict.fromkeys(path.rpartition("/")[0] for path in arrays)
            names[image.path.name] = list(groups)
        shards.write_index(self._path, names, total)


def _shards(
    arrays: Mapping[str, Array], shard_size: int
) -> Iterator[dict[str, Array]]:
    shard: dict[str, Array] = {}
    size = 0
    for path, array in arrays.items():
        if shard and size + array.nbytes > shard_size:
            yield shard
            shard, size = {}, 0
        shard[path] = array
        size += array.nbytes
    yield shard


def _above(arrays: Mapping[str, Array], structure: Structure) -> dict[str, Any]:
    """The groups that arrays are in, with their attributes."""
    above = set()
    for path in arrays:
        names = path.split("/")
        above |= {"/".join(names[:depth]) for depth in range(len(names))}
    return {
        path: structure.groups[path]
        for path in structure.groups
        if path in above
    }
