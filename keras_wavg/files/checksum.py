"""A checksum of a checkpoint's weights, at the speed of reading them.

SHA-256 over all bytes would take longer than averaging them. So the bytes of
each block are summed as 64-bit integers, and SHA-256 is over the sums. It tells
files apart and finds damage. It is no defence against forgery.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.numbers import Numbers, bit_sum
from keras_wavg.files.streaming import Block, Progress, blocks, for_each


def checksum(checkpoint: Checkpoint, progress: Progress | None = None) -> str:
    """The checksum of a checkpoint's weights, whatever else is in the file.

    Args:
        checkpoint: A `Checkpoint`.
        progress: See `Progress`.

    Returns:
        String of 64 hexadecimal digits.
    """
    arrays = checkpoint.weights
    sums = room_for_sums(arrays)

    def work(block: Block) -> None:
        data = numpy.empty(block.nbytes, "uint8")
        checkpoint.read_into(block.path, data.data, block.start)
        sums[block.index] = bit_sum(data)

    for_each(work, arrays, progress)
    return digest(arrays, sums)


def room_for_sums(arrays: Mapping[str, Array]) -> Numbers:
    """An array with a sum for each block."""
    return numpy.zeros(sum(1 for _ in blocks(arrays)), "uint64")


def digest(arrays: Mapping[str, Array], sums: Numbers) -> str:
    """The checksum from the sums of all blocks."""
    kinds = [[p, arrays[p].dtype, arrays[p].shape] for p in sorted(arrays)]
    head = json.dumps(kinds).encode()
    return hashlib.sha256(head + sums.astype("<u8").tobytes()).hexdigest()
