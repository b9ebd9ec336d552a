"""Computes the statistics of the inputs of layers in a batch."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_wavg.keras_private import (
    NoDonation,
    reduction_axes,
    synchronized_moments,
)


class BatchStatistics(NoDonation, keras.Model):
    """Model that maps a batch to the statistics of the inputs of layers.

    It is a model because `predict` accepts any data, compiles, distributes,
    shows the progress, and concatenates.
    """

    def __init__(self, model: Any, layers: Sequence[Any]) -> None:
        super().__init__(
            name="batch_statistics", dtype="float32", autocast=False
        )
        self.measured_model = model
        self.recorded = _Recorded()
        self.channels = {id(v): v.moving_mean.shape[0] for v in layers}
        self.running = ""
        self.built = True
        if model.compiled:
            self.run_eagerly = model.run_eagerly
            if not model.jit_compile:
                self.jit_compile = False

    def call(self, inputs: Any) -> list[Any]:
        """Run the model, and return an array per layer."""
        self.running = str(keras.tree.map_structure(_shape, inputs))
        self.recorded.by_layer = {layer: [] for layer in self.channels}
        self.measured_model(inputs, training=False)
        self.running = ""
        return [
            _replicated(ops.stack(statistics))
            if (statistics := self.recorded.by_layer[layer])
            else ops.zeros((0, 4, channels))
            for layer, channels in self.channels.items()
        ]


@contextlib.contextmanager
def recording(layers: Sequence[Any], model: BatchStatistics) -> Iterator[None]:
    """Context in which layers record the statistics of their inputs."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            call = _recording_call(layer, model.recorded)
            stack.enter_context(_replaced(layer, call=call))
        yield


class _Recorded(threading.local):
    """Statistics by layer. TensorFlow runs each replica in a thread."""

    def __init__(self) -> None:
        self.by_layer: dict[int, list[Any]] = {}


def _replicated(statistics: Any) -> Any:
    """Replicate statistics, so that each process can read them."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return statistics
    layout = keras.distribution.TensorLayout(
        [None] * 3, distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(statistics, layout)


def _shape(array: Any) -> Any:
    return tuple(getattr(array, "shape", ()))


def _recording_call(layer: Any, recorded: _Recorded) -> Callable[..., Any]:
    """The layer's `call` with statistics of the batch, which are recorded."""
    call = layer.call

    def recording_call(
        inputs: Any, *_: Any, mask: Any = None, **__: Any
    ) -> Any:
        statistics = _statistics(layer, inputs, mask)
        recorded.by_layer[id(layer)].append(statistics)
        mean, _, variance, _ = ops.unstack(statistics)
        if getattr(layer, "synchronized", False):
            mean, variance = synchronized_moments(
                layer, ops.cast(inputs, mean.dtype), mask
            )
        # In inference mode the layer uses its moving statistics: no variable
        # needs to be assigned, and renormalization has no effect.
        with _replaced(layer, moving_mean=mean, moving_variance=variance):
            return call(inputs, training=False, mask=mask)

    return recording_call


@contextlib.contextmanager
def _replaced(layer: Any, **attributes: Any) -> Iterator[None]:
    """Context in which attributes of a layer are replaced, not tracked."""
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
    """Mean, its rounding error, biased variance and count per channel."""
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = ops.cast(inputs, dtype)
    is_used = ops.ones_like(inputs, dtype="bool")
    if mask is not None:
        is_used = ops.logical_and(is_used, ops.expand_dims(mask, -1))
    axes = reduction_axes(layer)
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
