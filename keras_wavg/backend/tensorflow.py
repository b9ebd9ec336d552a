"""Values of variables on TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy
import tensorflow as tf


def traced_function() -> Any:
    """The graph of the function that TensorFlow is tracing."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def device_copies(variables: Sequence[Any]) -> list[tf.Tensor]:
    """Copies of the values of Keras variables, on their devices."""
    return [tf.identity(variable.value) for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[numpy.ndarray]:
    """Copies of the values of Keras variables, in host memory."""
    return [numpy.array(tf.identity(variable.value)) for variable in variables]


def same_values(arrays: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of the same dtype are equal, pair by pair."""
    # Not compiled: tracing takes longer than all comparisons of a `fit`.
    same = [
        tf.reduce_all((a == b) | (tf.math.is_nan(a) & tf.math.is_nan(b)))
        for a, b in zip(map(tf.convert_to_tensor, arrays), others, strict=True)
    ]
    return [bool(flag) for flag in same]
