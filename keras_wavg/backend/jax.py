"""Arrays of JAX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy

from keras_wavg.keras_private import has_value


def placed(value: Any, variable: Any) -> Any:
    """A value, on the devices of the Keras variable that it is for.

    A variable without a layout would move to where the value is.
    """
    if has_value(variable) and variable.value.committed:
        return jax.device_put(value, variable.value.sharding)
    return value


def device_copies(variables: Sequence[Any]) -> list[jax.Array]:
    """Copies of the values of Keras variables, on their devices."""
    return [jnp.copy(variable.value) for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[numpy.ndarray]:
    """Copies of the values of Keras variables, in host memory."""
    arrays = jax.device_get([variable.value for variable in variables])
    return [numpy.array(array) for array in arrays]


def snapshot(variables: Sequence[Any]) -> list[Any]:
    """Values that stay while nothing donates those of the variables."""
    return [
        numpy.array(v.value) if v.value.is_fully_addressable else v.value
        for v in variables
    ]


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN."""
    same = jax.device_get(_compare(list(ones), list(others)))
    return [bool(one) for one in same]


@jax.jit
def _compare(ones: list[jax.Array], others: list[jax.Array]) -> list[jax.Array]:
    return [
        jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
        for a, b in zip(ones, others, strict=True)
    ]
