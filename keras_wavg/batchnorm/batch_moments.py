"""Computes the statistics of one batch."""

from typing import Any

import keras
from keras import ops


def batch_moments(inputs: Any, mask: Any, axes: list[int]) -> Any:
    """Mean, its rounding error, biased variance and count per channel.

    Args:
        inputs: Tensor.
        mask: Boolean tensor of the shape of `inputs` without the last axis, or
            `None`. Elements where it is `False` are not used.
        axes: List of integers, all axes but that of the channels.

    Returns:
        Tensor of shape `(4, channels)`.
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = ops.cast(inputs, dtype)
    is_used = ops.ones_like(inputs, dtype="bool")
    if mask is not None:
        is_used = ops.logical_and(is_used, ops.expand_dims(mask, -1))
    count = ops.cast(_sum(ops.cast(is_used, "int32"), axes), dtype)

    def mean_of(values: Any) -> Any:
        total = _sum(ops.where(is_used, values, 0), axes)
        return total / ops.maximum(count, 1)

    mean = mean_of(inputs)
    error = mean_of(inputs - mean)
    variance = mean_of(ops.square(inputs - mean)) - ops.square(error)
    variance = ops.maximum(variance, 0)
    rows = (mean, error, variance, count)
    return ops.stack([ops.reshape(row, (-1,)) for row in rows])


def _sum(values: Any, axes: list[int]) -> Any:
    # Axis by axis: TensorFlow adds sequentially, and the sum over all axes of
    # images would lose half of the digits.
    for axis in axes:
        values = ops.sum(values, axis, keepdims=True)
    return values
