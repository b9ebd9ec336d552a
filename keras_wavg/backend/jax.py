"""Values of variables on JAX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy

from keras_wavg.backend.jax_shards import (
    from_local_part,
    local_copy,
    spans_processes,
)
from keras_wavg.keras_private import has_value


def placed_like(value: Any, variable: Any) -> Any:
    """A value on the devices of a Keras variable.

    Without this, assigning the value would move a variable without a layout.

    Args:
        value: Array of the variable's shape, or one of `host_copies`.
        variable: A Keras variable.
    """
    if not (has_value(variable) and variable.value.committed):
        return value
    return _with_sharding_of(variable.value, value)


def to_tensor(value: Any, variable: Any | None, model: Any) -> jax.Array:
    """Convert a value to a JAX array with the sharding of a variable.

    Without a variable the value is replicated on all devices of the model.
    """
    if isinstance(value, jax.Array):
        return value
    if variable is not None:
        like = variable.value
        return from_local_part(value, like.sharding, like.shape)
    sharding = model.weights[0].value.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        replicated = jax.sharding.PartitionSpec()
        sharding = jax.sharding.NamedSharding(sharding.mesh, replicated)
    return from_local_part(value, sharding, value.shape)


def _with_sharding_of(like: jax.Array, value: Any) -> jax.Array:
    if spans_processes(like) and not spans_processes(value):
        return from_local_part(numpy.asarray(value), like.sharding, like.shape)
    return jax.device_put(value, like.sharding)


def traced_function() -> Any:
    """What identifies the function that JAX is tracing."""
    function = getattr(jax.extend.core, "get_opaque_trace_state", None)
    return function and function(convention="flax")


def device_copies(variables: Sequence[Any]) -> list[jax.Array]:
    """Copies of the values of Keras variables, on their devices."""
    return [jnp.copy(variable.value) for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[numpy.ndarray]:
    """Copies of the values of Keras variables, in host memory.

    If a variable spans processes, only the local part is copied.
    """
    arrays = [variable.value for variable in variables]
    for array in arrays:
        array.copy_to_host_async()
    return [local_copy(array) for array in arrays]


def local_part(array: Any) -> Any:
    """The part of an array in this process, if the array spans processes."""
    return local_copy(array) if spans_processes(array) else array


def host_copy(array: Any) -> numpy.ndarray:
    """A copy of the local part of an array, in host memory."""
    return local_copy(array)


def unreadable(variables: Sequence[Any]) -> list[str]:
    """Paths of the variables that are sharded across processes."""
    return [
        v.path
        for v in variables
        if spans_processes(v.value) and not v.value.is_fully_replicated
    ]


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether any variable is sharded or replicated across processes."""
    return any(spans_processes(variable.value) for variable in variables)


def same_values(arrays: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of the same dtype are equal, pair by pair."""
    others = [
        _with_sharding_of(array, other) if spans_processes(array) else other
        for array, other in zip(arrays, others, strict=True)
    ]
    same = jax.device_get(_compare(list(arrays), others))
    return [bool(flag) for flag in same]


@jax.jit
def _compare(
    arrays: list[jax.Array], others: list[jax.Array]
) -> list[jax.Array]:
    return [
        jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
        for a, b in zip(arrays, others, strict=True)
    ]
