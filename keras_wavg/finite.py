"""Finds weights with NaN or infinite elements."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from keras_wavg.backend import local_part


def indices_not_finite(
    weights: Sequence[Any], read_averages: Callable[[], Sequence[Any]]
) -> list[int]:
    """The indices of weights that have a NaN or infinite element.

    An element that equals its average is a constant, as in a mask, and does not
    count. If weights are sharded across processes, each process checks its own
    part.

    Args:
        weights: Tensors or arrays.
        read_averages: Function that returns their averages. It is called only
            if a weight is not finite.
    """
    tensors = [ops.convert_to_tensor(local_part(weight)) for weight in weights]
    flags = ops.stack([ops.all(ops.isfinite(tensor)) for tensor in tensors])
    are_finite = ops.convert_to_numpy(flags)
    if are_finite.all():
        return []
    averages = read_averages()
    return [
        i
        for i, is_finite in enumerate(are_finite)
        if not is_finite
        and not _is_constant(tensors[i], local_part(averages[i]))
    ]


def _is_constant(weight: Any, average: Any) -> bool:
    same = ops.cast(weight, "float32") == ops.cast(average, "float32")
    return bool(ops.all(ops.isfinite(weight) | same))
