"""Writes checkpoints in HDF5: `.weights.h5`, `.weights.json` and `.keras`."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from keras_wavg import system
from keras_wavg.files import shards
from keras_wavg.files.checkpoint import PROVENANCE, keras_archive, suffix_of
from keras_wavg.files.hdf5.encoder import assign_offsets, encode_metadata
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.streaming import Block

_LARGE_WRITE = 1 << 18


class HDF5Writer:
    """Writes one HDF5 file.

    Args:
        path: `pathlib.Path` of the file.
        structure: A `Structure`. Its offsets are ignored.
    """

    def __init__(self, path: Path, structure: Structure) -> None:
        self.path = path
        self.structure, self._end = assign_offsets(structure)
        self._descriptor = system.open_to_write(path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def write(self, data: memoryview, block: Block) -> None:
        """Write the bytes of a block."""
        offset = self.structure.arrays[block.path].offset + block.start
        system.write_all(self._descriptor, data, offset)
        if len(data) >= _LARGE_WRITE:
            system.start_writeback(self._descriptor, offset, len(data))

    def finish(self) -> None:
        """Write everything but the arrays."""
        start, end = encode_metadata(self.structure, self._end)
        system.write_all(self._descriptor, memoryview(start), 0)
        system.write_all(self._descriptor, memoryview(end), self._end)


class HDF5Output:
    """Context that writes a checkpoint in HDF5.

    Args:
        path: `pathlib.Path` in an empty directory. Its suffix is the format.
        structure: A `Structure`. Its offsets are ignored.
        archive: `pathlib.Path` of the `.keras` file from which a `.keras`
            output copies everything but the weights, or `None`.
        shard_size: Integer, the maximum size of the arrays in a shard, in
            bytes.
    """

    def __init__(
        self,
        path: Path,
        structure: Structure,
        archive: Path | None,
        shard_size: int,
    ) -> None:
        self._path = path
        self._archive = archive
        self._suffix = suffix_of(path, "output_filepath")
        self._writers = [
            HDF5Writer(self._writer_path(number), part)
            for number, part in enumerate(self._parts(structure, shard_size))
        ]
        self._writer_of = {
            array: writer
            for writer in self._writers
            for array in writer.structure.arrays
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    @property
    def names(self) -> list[str]:
        """The names of the files that are written."""
        if self._suffix == ".weights.json":
            shard_names = (writer.path.name for writer in self._writers)
            return [self._path.name, *shard_names]
        return [self._path.name]

    def write(self, data: memoryview, block: Block) -> None:
        """Write the bytes of a block."""
        self._writer_of[block.path].write(data, block)

    def finish(self, provenance: str) -> None:
        """Write everything but the arrays.

        Args:
            provenance: String, JSON to save in the checkpoint.
        """
        groups = self._writers[0].structure.groups
        groups[""] = {**groups[""], PROVENANCE: provenance}
        for writer in self._writers:
            writer.finish()
        if self._suffix == ".weights.json":
            self._write_index()
        if self._suffix == ".keras" and self._archive:
            weights = self._writers[0].path
            keras_archive().write_archive(self._path, weights, self._archive)
            weights.unlink()

    def _parts(
        self, structure: Structure, shard_size: int
    ) -> Iterator[Structure]:
        if self._suffix != ".weights.json":
            yield structure
            return
        groups = dict(structure.groups)
        for arrays in _shards(structure.arrays, shard_size):
            yield Structure(groups | _groups_of(arrays, structure), arrays)
            groups = {"": {}}

    def _writer_path(self, number: int) -> Path:
        if self._suffix == ".weights.h5":
            return self._path
        if self._suffix == ".keras":
            return self._path.with_name(keras_archive().WEIGHTS)
        return self._path.with_name(shards.shard_name(self._path, number))

    def _write_index(self) -> None:
        total, names = 0, {}
        for writer in self._writers:
            arrays = writer.structure.arrays
            total += sum(array.nbytes for array in arrays.values())
            groups = dict.fromkeys(path.rpartition("/")[0] for path in arrays)
            names[writer.path.name] = list(groups)
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


def _groups_of(
    arrays: Mapping[str, Array], structure: Structure
) -> dict[str, Attributes]:
    """The groups that contain the arrays, with their attributes."""
    above = set()
    for path in arrays:
        names = path.split("/")
        above |= {"/".join(names[:depth]) for depth in range(len(names))}
    return {
        path: structure.groups[path]
        for path in structure.groups
        if path in above
    }
