"""Which weights have elements that are not finite."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from keras_wavg.backend import own_part


def not_finite(
    weights: Sequence[Any], read_averages: Callable[[], Sequence[Any]]
) -> list[int]:
    """The indices of weights of which an element is NaN or infinite.

    An element that equals its average is a constant, as in a mask, and does not
    count. Where weights are spread over processes, each looks at its own part.

    Args:
        weights: Tensors or arrays.
        read_averages: Function that returns their averages. It is called only
            where a weight is not finite.
    """
    tensors = [ops.convert_to_tensor(own_part(weight)) for weight in weights]
    flags = ops.stack([ops.all(ops.isfinite(tensor)) for tensor in tensors])
    are_finite = ops.convert_to_numpy(flags)
    if are_finite.all():
        return []
    averages = read_averages()
    return [
        i
        for i, is_finite in enumerate(are_finite)
        if not is_finite and not _is_constant(tensors[i], own_part(averages[i]))
    ]


def _is_constant(weight: Any, average: Any) -> bool:
    same = ops.cast(weight, "float32") == ops.cast(average, "float32")
    return bool(ops.all(ops.isfinite(weight) | same))
