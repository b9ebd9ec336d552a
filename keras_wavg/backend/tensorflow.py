"""Tensors of TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy
import tensorflow as tf


def device_copies(variables: Sequence[Any]) -> list[tf.Tensor]:
    """Copies of the values of Keras variables, on their devices."""
    return [tf.identity(variable.value) for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[numpy.ndarray]:
    """Copies of the values of Keras variables, in host memory."""
    return [numpy.array(tf.identity(variable.value)) for variable in variables]


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN."""
    # Not compiled: to trace it takes longer than all comparisons of a `fit`.
    same = [
        tf.reduce_all((a == b) | (tf.math.is_nan(a) & tf.math.is_nan(b)))
        for a, b in zip(map(tf.convert_to_tensor, ones), others, strict=True)
    ]
    return [bool(one) for one in same]
