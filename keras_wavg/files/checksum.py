"""Checksums of a checkpoint's weights, at the speed of reading them.

SHA-256 over all bytes would take longer than averaging them. So each block has
its CRC-32, and SHA-256 is over those. It tells files apart and finds damage,
also bytes in another order. It is no defence against forgery.

A CRC-32 of parts gives that of the whole. So the weights in a `.keras` file,
a zip archive, are held against the CRC-32 that the archive has of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
from zlib_ng import zlib_ng

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.floats import Numbers
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.source import Source
from keras_wavg.files.streaming import Block, Progress, blocks, for_each

crc32: Callable[[Any], int] = zlib_ng.crc32
"""The CRC-32 of bytes. The standard library's takes 30 times as long."""

_KIND = "crc32:"
_PIECE = 1 << 20


def checksum(checkpoint: Checkpoint, progress: Progress | None = None) -> str:
    """The checksum of a checkpoint's weights, whatever else is in the file.

    Args:
        checkpoint: A `Checkpoint`.
        progress: See `Progress`.

    Returns:
        String, `crc32:` and 64 hexadecimal digits.

    Raises:
        ValueError: If an archive has another CRC-32 of its weights.
    """
    sums = _sums(checkpoint, crc32, progress)
    require_whole(checkpoint, checkpoint.weights, sums)
    return digest(checkpoint.weights, sums)


def is_unchanged(checkpoint: Checkpoint, own: str, kept: str) -> bool:
    """Whether the weights have a checksum, of this or of the earlier kind.

    Args:
        checkpoint: A `Checkpoint`.
        own: String, its checksum.
        kept: String, the checksum it had.
    """
    if sees_order(kept):
        return own == kept
    sums = _sums(checkpoint, _sum_of_words)
    return _hashed(checkpoint.weights, sums.astype("<u8")) == kept


def sees_order(kept: str) -> bool:
    """Whether a checksum is not of the earlier kind, a sum of words."""
    return kept.startswith(_KIND)


def short(kept: str) -> str:
    """The first digits of a checksum."""
    return kept.removeprefix(_KIND)[:12]


def room_for_sums(arrays: Mapping[str, Array]) -> Numbers:
    """An array with a number for each block."""
    return numpy.zeros(sum(1 for _ in blocks(arrays)), "uint64")


def digest(arrays: Mapping[str, Array], sums: Numbers) -> str:
    """The checksum from the CRC-32 of all blocks."""
    return _KIND + _hashed(arrays, sums.astype("<u4"))


def require_whole(
    checkpoint: Checkpoint, arrays: Mapping[str, Array], sums: Numbers
) -> None:
    """Refuse an archive whose weights are not those that it was made with.

    Args:
        checkpoint: A `Checkpoint`.
        arrays: Dict from paths to `Array`s that have been read, of it or of
            a checkpoint with the same.
        sums: The CRC-32 of each of their blocks.

    Raises:
        ValueError: If the CRC-32 is another.
    """
    for source in checkpoint.sources:
        if source.crc is None:
            continue
        known: dict[int, list[tuple[int, int]]] = {}
        for block in blocks(arrays):
            part = int(sums[block.index]), block.nbytes
            offset = checkpoint.arrays[block.path].offset
            known.setdefault(offset, []).append(part)
        total = 0
        for crc, size in _parts(source, known):
            total = zlib_ng.crc32_combine(total, crc, size)
        if total != source.crc:
            source.refuse("it is damaged: the CRC-32 of the weights is another")


def _parts(
    source: Source, known: Mapping[int, list[tuple[int, int]]]
) -> Iterator[tuple[int, int]]:
    """The CRC-32 and size of each part, and of what is around those known."""
    at, buffer = 0, memoryview(bytearray(_PIECE))
    for offset in (*sorted(known), source.size):
        while at < offset:
            piece = buffer[: offset - at]
            source.read_into(piece, at)
            yield crc32(piece), len(piece)
            at += len(piece)
        for crc, size in known.get(offset, ()):
            yield crc, size
            at += size


def _sums(
    checkpoint: Checkpoint,
    sum_of: Callable[[Any], Any],
    progress: Progress | None = None,
) -> Numbers:
    arrays = checkpoint.weights
    sums = room_for_sums(arrays)

    def work(block: Block) -> None:
        data = numpy.empty(block.nbytes, "uint8")
        checkpoint.read_into(data.data, block)
        sums[block.index] = sum_of(data)

    for_each(work, arrays, progress)
    return sums


def _hashed(arrays: Mapping[str, Array], sums: Numbers) -> str:
    kinds = [[p, arrays[p].dtype, arrays[p].shape] for p in sorted(arrays)]
    head = json.dumps(kinds).encode()
    return hashlib.sha256(head + sums.tobytes()).hexdigest()


def _sum_of_words(stored: Numbers) -> Any:
    """What earlier versions had of a block. It does not see order."""
    size = len(stored)
    if size % 8:
        stored = numpy.append(stored, numpy.zeros(-size % 8, "uint8"))
    return numpy.add.reduce(stored.view("uint64"))
