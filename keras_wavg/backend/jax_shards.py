"""The local part of an array that spans several processes.

Each process reads and writes its own shards without communication. In host
memory the shards are concatenated into one flat array, sorted by position. If
a process has the whole array, the copy keeps its shape.
"""

from typing import Any

import jax
import numpy

Position = tuple[tuple[int, int], ...]
"""The bounds `(start, end)` of a shard along each axis."""


def spans_processes(array: Any) -> bool:
    """Whether an array is a JAX array on the devices of several processes."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def local_copy(array: jax.Array) -> numpy.ndarray:
    """A copy of the local part of an array, in host memory."""
    if not spans_processes(array) or array.is_fully_replicated:
        return numpy.array(array)
    shards = _shards(array)
    if sum(map(_size, shards)) == array.size:
        whole = numpy.empty(array.shape, array.dtype)
        for position, shard in shards.items():
            whole[tuple(slice(*bounds) for bounds in position)] = shard
        return whole
    return numpy.concatenate(
        [numpy.asarray(shards[position]).ravel() for position in sorted(shards)]
    )


def from_local_part(
    part: numpy.ndarray, sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> jax.Array:
    """Create an array from the local part of each process.

    Args:
        part: An array returned by `local_copy`, or the whole array.
        sharding: The sharding of the new array.
        shape: Tuple of integers, the shape of the new array.
    """
    if part.shape == shape:
        return jax.make_array_from_callback(
            shape, sharding, lambda index: part[index]
        )
    indices = sharding.addressable_devices_indices_map(shape).values()
    positions = sorted({_position(index, shape) for index in indices})
    ends = numpy.cumsum([_size(position) for position in positions])
    flat = dict(zip(positions, numpy.split(part, ends[:-1]), strict=True))
    return jax.make_array_from_callback(
        shape,
        sharding,
        lambda index: flat[_position(index, shape)].reshape(
            [end - start for start, end in _position(index, shape)]
        ),
    )


def _shards(array: jax.Array) -> dict[Position, jax.Array]:
    """The shards of this process, without duplicates."""
    return {
        _position(shard.index, array.shape): shard.data
        for shard in array.addressable_shards
    }


def _position(index: tuple[slice, ...], shape: tuple[int, ...]) -> Position:
    bounds = zip(index, shape, strict=True)
    return tuple(one.indices(size)[:2] for one, size in bounds)


def _size(position: Position) -> int:
    return int(numpy.prod([end - start for start, end in position]))
