"""A `BatchNormalization` layer whose statistics are measured."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy
from keras import ops

from keras_wavg.backend import normalization_modules
from keras_wavg.batchnorm.batch_moments import batch_moments
from keras_wavg.keras_private import (
    flattened_layers,
    reduction_axes,
    synchronized_moments,
)

RecordedCall = Callable[[Any], contextlib.AbstractContextManager[None]]
"""Returns the context of a call whose inputs have certain `batch_moments`."""


class Normalization:
    """A trainable layer of Keras.

    Args:
        layer: A built `keras.layers.BatchNormalization`, or a subclass.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.identity = id(layer)
        self.path: str = layer.path
        self.variables = [layer.moving_mean, layer.moving_variance]
        if getattr(layer, "renorm", False):
            names = "moving_stddev", "renorm_mean", "renorm_stddev"
            self.variables += [getattr(layer, name) for name in names]

    def values(self, mean: numpy.ndarray, variance: numpy.ndarray) -> list[Any]:
        """The values of the variables for measured statistics."""
        stddev = numpy.sqrt(variance + self._layer.epsilon)
        values = [mean, variance, stddev, mean, stddev]
        return values[: len(self.variables)]

    @contextlib.contextmanager
    def recorded(self, recorded_call: RecordedCall) -> Iterator[None]:
        """Context in which calls use and record the statistics of a batch."""
        call = _recording_call(self._layer, recorded_call)
        with replaced(vars(self._layer), call=call):
            yield


def _recording_call(
    layer: Any, recorded_call: RecordedCall
) -> Callable[..., Any]:
    call = layer.call
    signature = inspect.signature(call)

    def recording_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # A subclass may have other arguments.
        bound = signature.bind(inputs, *args, **kwargs)
        mask = bound.arguments.get("mask")
        statistics = batch_moments(inputs, mask, reduction_axes(layer))
        mean, variance = _moments(layer, inputs, mask, statistics)
        if "training" in signature.parameters:
            bound.arguments["training"] = False
        # In inference mode the layer uses its moving statistics: no variable
        # needs to be assigned, and renormalization has no effect.
        moving = {"moving_mean": mean, "moving_variance": variance}
        with recorded_call(statistics), replaced(vars(layer), **moving):
            return call(*bound.args, **bound.kwargs)

    return recording_call


def _moments(
    layer: Any, inputs: Any, mask: Any, statistics: Any
) -> tuple[Any, Any]:
    """Mean and variance that the layer normalizes with in training."""
    mean, _, variance, _ = ops.unstack(statistics)
    if getattr(layer, "synchronized", False):
        inputs = ops.cast(inputs, mean.dtype)
        mean, variance = synchronized_moments(layer, inputs, mask)
    return mean, variance


class TorchNormalization:
    """A normalization of torch, in a `keras.layers.TorchModuleWrapper`.

    Its statistics are buffers, which are not weights of the Keras model.

    Args:
        path: String, the path of the module.
        module: A `torch.nn.BatchNorm2d` or similar module.
    """

    def __init__(self, path: str, module: Any) -> None:
        self._module = module
        self.identity = id(module)
        self.path = path

    @functools.cached_property
    def variables(self) -> list[Any]:
        """Keras variables that share the memory of the buffers."""
        return [
            keras.Variable(
                getattr(self._module, name), trainable=False, name=name
            )
            for name in ("running_mean", "running_var")
        ]

    def values(self, mean: numpy.ndarray, variance: numpy.ndarray) -> list[Any]:
        """The values of the variables for measured statistics."""
        return [mean, variance]

    @contextlib.contextmanager
    def recorded(self, recorded_call: RecordedCall) -> Iterator[None]:
        """Context in which calls use and record the statistics of a batch."""
        module, forward = self._module, self._module.forward

        def recording_forward(inputs: Any) -> Any:
            axes = [axis for axis in range(inputs.ndim) if axis != 1]
            statistics = batch_moments(inputs, None, axes)
            mean, _, variance, _ = ops.unstack(statistics)
            moving = {"running_mean": mean, "running_var": variance}
            buffers = replaced(module._buffers, **moving)
            with recorded_call(statistics), buffers:
                return forward(inputs)

        with replaced(vars(module), forward=recording_forward):
            yield


def modules_of_torch(model: Any) -> list[TorchNormalization]:
    """The normalizations of torch in the trainable layers of a model."""
    return [
        TorchNormalization(f"{layer.name}/{name}", module)
        for layer in flattened_layers(model)
        if layer.trainable
        for name, module in normalization_modules(layer).items()
    ]


@contextlib.contextmanager
def replaced(own: dict[str, Any], **attributes: Any) -> Iterator[None]:
    """Context in which attributes of an object are replaced, not tracked.

    Args:
        own: The `vars()` of the object.
        **attributes: The values in the context, by name.
    """
    before = {name: own[name] for name in attributes.keys() & own.keys()}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)
