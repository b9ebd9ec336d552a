"""What layers of a model see of a batch."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_wavg.keras_private import (
    KeepsWeights,
    reduction_axes,
    synchronized_moments,
)


class Probe(KeepsWeights, keras.Model):
    """Maps a batch to the statistics that layers of a model see of it.

    A model for the sake of its `predict`: that takes any data, compiles,
    distributes, shows the progress, and concatenates.
    """

    def __init__(self, model: Any, layers: Sequence[Any]) -> None:
        super().__init__(name="probe", dtype="float32", autocast=False)
        self.probed = model
        self.seen = _Seen()
        self.channels = {id(v): v.moving_mean.shape[0] for v in layers}
        self.running = ""
        self.built = True
        if model.compiled:
            self.run_eagerly = model.run_eagerly
            if not model.jit_compile:
                self.jit_compile = False

    def call(self, inputs: Any) -> list[Any]:
        """Run the model, and return an array for each of its layers."""
        self.running = str(keras.tree.map_structure(_shape, inputs))
        self.seen.of = {layer: [] for layer in self.channels}
        self.probed(inputs, training=False)
        self.running = ""
        return [
            _readable(ops.stack(statistics))
            if (statistics := self.seen.of[layer])
            else ops.zeros((0, 4, channels))
            for layer, channels in self.channels.items()
        ]


@contextlib.contextmanager
def watched(layers: Sequence[Any], probe: Probe) -> Iterator[None]:
    """Context in which layers tell a probe what they see."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            call = _observed(layer, probe.seen)
            stack.enter_context(_lent(layer, call=call))
        yield


class _Seen(threading.local):
    """Statistics by layer. One batch a thread: TensorFlow's replicas are."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {}


def _readable(statistics: Any) -> Any:
    """Statistics that each process has all of."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return statistics
    layout = keras.distribution.TensorLayout(
        [None] * 3, distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(statistics, layout)


def _shape(array: Any) -> Any:
    return tuple(getattr(array, "shape", ()))


def _observed(layer: Any, seen: _Seen) -> Callable[..., Any]:
    """The layer's `call`, by the statistics of the batch, which are noted."""
    call = layer.call

    def observed(inputs: Any, *_: Any, mask: Any = None, **__: Any) -> Any:
        statistics = _statistics(layer, inputs, mask)
        seen.of[id(layer)].append(statistics)
        mean, _, variance, _ = ops.unstack(statistics)
        if getattr(layer, "synchronized", False):
            mean, variance = synchronized_moments(
                layer, ops.cast(inputs, mean.dtype), mask
            )
        # In inference the layer normalizes by its moving statistics. So no
        # variable needs to be assigned, and renormalization has no say.
        with _lent(layer, moving_mean=mean, moving_variance=variance):
            return call(inputs, training=False, mask=mask)

    return observed


@contextlib.contextmanager
def _lent(layer: Any, **attributes: Any) -> Iterator[None]:
    """Context in which a layer has other attributes, untracked by Keras."""
    own = vars(layer)
    before = {name: own[name] for name in attributes.keys() & own.keys()}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


def _statistics(layer: Any, inputs: Any, mask: Any) -> Any:
    """Mean, its rounding error, biased variance and count of each channel."""
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = ops.cast(inputs, dtype)
    kept = ops.ones_like(inputs, dtype="bool")
    if mask is not None:
        kept = ops.logical_and(kept, ops.expand_dims(mask, -1))
    axes = reduction_axes(layer)
    count = ops.cast(_sum(ops.cast(kept, "int32"), axes), dtype)

    def average(values: Any) -> Any:
        total = _sum(ops.where(kept, values, 0), axes)
        return total / ops.maximum(count, 1)

    mean = average(inputs)
    rest = average(inputs - mean)
    variance = average(ops.square(inputs - mean)) - ops.square(rest)
    variance = ops.maximum(variance, 0)
    rows = (mean, rest, variance, count)
    return ops.stack([ops.reshape(row, (-1,)) for row in rows])


def _sum(values: Any, axes: list[int]) -> Any:
    # Axis by axis: TensorFlow adds one number after the other, and a long sum
    # of images loses half of the digits.
    for axis in axes:
        values = ops.sum(values, axis, keepdims=True)
    return values
