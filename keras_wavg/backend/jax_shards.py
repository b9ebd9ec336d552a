"""The part of an array that a process has, where an array spans processes.

A process reads and writes its own shards without a word to the others. In host
memory they are one flat array, in the order of their places; an array that the
process has all of keeps its shape.
"""

from typing import Any

import jax
import numpy

Place = tuple[tuple[int, int], ...]


def spans_processes(array: Any) -> bool:
    """Whether an array is one of JAX that no process need have all of."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def host_part(array: jax.Array) -> numpy.ndarray:
    """A copy of what this process has of an array, in host memory."""
    if not spans_processes(array) or array.is_fully_replicated:
        return numpy.array(array)
    shards = _shards(array)
    if sum(map(_size, shards)) == array.size:
        whole = numpy.empty(array.shape, array.dtype)
        for place, shard in shards.items():
            whole[tuple(slice(*bounds) for bounds in place)] = shard
        return whole
    return numpy.concatenate(
        [numpy.asarray(shards[place]).ravel() for place in sorted(shards)]
    )


def from_part(
    part: numpy.ndarray, sharding: Any, shape: tuple[int, ...]
) -> jax.Array:
    """The array that `host_part` was taken of, or another like it.

    Args:
        part: What `host_part` returns, or the whole array.
        sharding: That of the array.
        shape: Tuple of integers, that of the array.
    """
    if part.shape == shape:
        return jax.make_array_from_callback(
            shape, sharding, lambda index: part[index]
        )
    indices = sharding.addressable_devices_indices_map(shape).values()
    places = sorted({_place(index, shape) for index in indices})
    ends = numpy.cumsum([_size(place) for place in places])
    flat = dict(zip(places, numpy.split(part, ends[:-1]), strict=True))
    return jax.make_array_from_callback(
        shape,
        sharding,
        lambda index: flat[_place(index, shape)].reshape(
            [end - start for start, end in _place(index, shape)]
        ),
    )


def _shards(array: jax.Array) -> dict[Place, jax.Array]:
    """The shards of this process, each once."""
    return {
        _place(shard.index, array.shape): shard.data
        for shard in array.addressable_shards
    }


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> Place:
    bounds = zip(index, shape, strict=True)
    return tuple(one.indices(size)[:2] for one, size in bounds)


def _size(place: Place) -> int:
    return int(numpy.prod([end - start for start, end in place]))
