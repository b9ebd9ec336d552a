"""Computes the statistics of the inputs of layers in a batch."""

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_wavg.backend import traced_function
from keras_wavg.batchnorm.normalization import replaced
from keras_wavg.keras_private import (
    NoDonation,
    flattened_layers,
    rematerialization,
)

_LOOPS = keras.layers.RNN, keras.layers.TimeDistributed


class BatchStatistics(NoDonation, keras.Model):
    """Model that maps a batch to the statistics of the inputs of layers.

    It is a model because `predict` accepts any data, compiles, distributes,
    shows the progress, and concatenates.

    Args:
        model: A built Keras model.
        layers: List of `Normalization`s of the model.

    Attributes:
        reason: What `call` cannot do at the moment, the message of an error.
    """

    def __init__(self, model: Any, layers: Sequence[Any]) -> None:
        super().__init__(
            name="batch_statistics", dtype="float32", autocast=False
        )
        self.measured_model = model
        self.recorded = _Recorded()
        self.channels = [layer.variables[0].shape[0] for layer in layers]
        self.paths = [layer.path for layer in layers]
        self.reason = ""
        self.built = True
        if model.compiled:
            self.run_eagerly = model.run_eagerly
            if not model.jit_compile:
                self.jit_compile = False
        if _has_loop_over(model, layers):
            # A compiled loop would not return the statistics of its steps.
            self.run_eagerly, self.jit_compile = True, False

    def call(self, inputs: Any) -> list[Any]:
        """Run the model, and return an array per layer."""
        self.reason = (
            "The model must accept the batches of `data`. Received: inputs of "
            f"shape {keras.tree.map_structure(_shape, inputs)}"
        )
        self.recorded.by_layer = [[] for _ in self.channels]
        self.recorded.function = traced_function()
        self.measured_model(inputs, training=False)
        self.reason = ""
        return [
            _replicated(ops.stack(statistics))
            if statistics
            else ops.zeros((0, 4, channels))
            for statistics, channels in zip(
                self.recorded.by_layer, self.channels, strict=True
            )
        ]

    @contextlib.contextmanager
    def recorded_call(self, index: int, statistics: Any) -> Iterator[None]:
        """Context of a call of a layer, whose statistics are recorded."""
        reason = self.reason
        if traced_function() != self.recorded.function:
            self.reason = self._refusal(
                index,
                "must not be called in `keras.ops.cond`, `scan` or other"
                " functions that the backend transforms",
            )
            raise ValueError(self.reason)
        self.recorded.by_layer[index].append(statistics)
        self.reason = self._refusal(
            index, "must accept tensors as its moving statistics in inference"
        )
        yield
        self.reason = reason

    def _refusal(self, index: int, rule: str) -> str:
        return (
            f"`BatchNormalization` {rule}. Received: layer "
            f"'{self.paths[index]}'. To keep its statistics, freeze it with "
            "`layer.trainable = False`."
        )


@contextlib.contextmanager
def recording(layers: Sequence[Any], model: BatchStatistics) -> Iterator[None]:
    """Context in which layers record the statistics of their inputs."""
    with contextlib.ExitStack() as stack:
        for layer in flattened_layers(model.measured_model):
            stack.enter_context(_called_directly(layer))
        for index, layer in enumerate(layers):
            stack.enter_context(
                layer.recorded(functools.partial(model.recorded_call, index))
            )
        yield


def _called_directly(layer: Any) -> contextlib.AbstractContextManager[None]:
    """Context in which no function is transformed to call the layer."""
    attributes: dict[str, Any] = dict.fromkeys(rematerialization(layer))
    if isinstance(layer, keras.layers.RNN):
        attributes["unroll"] = True
    return replaced(vars(layer), **attributes)


class _Recorded(threading.local):
    """Statistics by layer. TensorFlow runs each replica in a thread."""

    def __init__(self) -> None:
        self.by_layer: list[list[Any]] = []
        self.function: Any = None


def _has_loop_over(model: Any, layers: Sequence[Any]) -> bool:
    """Whether Keras calls a layer in a loop over time steps."""
    loops = [v for v in flattened_layers(model) if isinstance(v, _LOOPS)]
    inside = {id(layer) for loop in loops for layer in flattened_layers(loop)}
    return any(layer.identity in inside for layer in layers)


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
