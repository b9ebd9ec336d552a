"""Arrays of JAX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy

from keras_wavg.backend.jax_shards import (
    from_part,
    host_part,
    spans_processes,
)
from keras_wavg.keras_private import has_value


def placed(value: Any, variable: Any) -> Any:
    """A value, on the devices of the Keras variable that it is for.

    A variable without a layout would move to where the value is.

    Args:
        value: Array of the variable's shape, or of `host_copies`.
        variable: A Keras variable.
    """
    if not (has_value(variable) and variable.value.committed):
        return value
    return _placed_like(value, variable.value)


def laid_out(value: Any, variable: Any) -> Any:
    """A value of a Keras variable, spread like it if it spans processes."""
    spans = spans_processes(variable.value)
    return _placed_like(value, variable.value) if spans else value


def on_devices(value: Any, variable: Any | None, model: Any) -> jax.Array:
    """A value as an array of JAX, laid out like the variable that it is for.

    Without a variable it is the same on all devices of the model.
    """
    if isinstance(value, jax.Array):
        return value
    if variable is not None:
        like = variable.value
        return from_part(value, like.sharding, like.shape)
    sharding = model.weights[0].value.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        same = jax.sharding.PartitionSpec()
        sharding = jax.sharding.NamedSharding(sharding.mesh, same)
    return from_part(value, sharding, value.shape)


def _placed_like(value: Any, like: jax.Array) -> jax.Array:
    if spans_processes(like) and not spans_processes(value):
        return from_part(numpy.asarray(value), like.sharding, like.shape)
    return jax.device_put(value, like.sharding)


def device_copies(variables: Sequence[Any]) -> list[jax.Array]:
    """Copies of the values of Keras variables, on their devices."""
    return [jnp.copy(variable.value) for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[numpy.ndarray]:
    """Copies of the values of Keras variables, in host memory.

    Where a variable spans processes, of the part that this process has.
    """
    arrays = [variable.value for variable in variables]
    for array in arrays:
        array.copy_to_host_async()
    return [host_part(array) for array in arrays]


def own_part(array: Any) -> Any:
    """What this process has of an array, if that spans processes."""
    return host_part(array) if spans_processes(array) else array


def host_copy(array: Any) -> numpy.ndarray:
    """A copy of an array, in host memory. See `host_copies`."""
    return host_part(array)


def unreadable(variables: Sequence[Any]) -> list[str]:
    """Paths of the variables that `keras.ops.convert_to_numpy` refuses."""
    return [
        v.path
        for v in variables
        if spans_processes(v.value) and not v.value.is_fully_replicated
    ]


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether variables are spread over processes, or the same in several."""
    return any(spans_processes(variable.value) for variable in variables)


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN."""
    others = [
        _placed_like(other, one) if spans_processes(one) else other
        for one, other in zip(ones, others, strict=True)
    ]
    same = jax.device_get(_compare(list(ones), others))
    return [bool(one) for one in same]


@jax.jit
def _compare(ones: list[jax.Array], others: list[jax.Array]) -> list[jax.Array]:
    return [
        jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
        for a, b in zip(ones, others, strict=True)
    ]
