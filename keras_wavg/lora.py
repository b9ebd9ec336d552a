"""Layers with LoRA adapters, which Keras merges into their kernels in files."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_wavg.keras_private import flattened_layers


def merged_in_files(model: Any) -> set[int]:
    """The ids of weights that Keras merges when it saves a model.

    Args:
        model: A Keras model.

    Returns:
        Set of integers.
    """
    return {id(v) for weights in _adapted(model) for v in weights}


def has_quantized_adapters(model: Any) -> bool:
    """Whether Keras saves adapters merged into quantized kernels.

    Such a file does not have the weights before the merge.

    Args:
        model: A Keras model.
    """
    return any(
        getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is not None
        for layer in flattened_layers(model)
    )


def require_complete_layers(model: Any, chosen: Sequence[Any]) -> None:
    """Refuse to average adapters without their kernel, or vice versa.

    An average of one merged with the raw weights of the other would lose both.

    Args:
        model: A Keras model.
        chosen: The variables that are averaged.

    Raises:
        ValueError: If a kernel is averaged without its adapters, or vice versa.
    """
    averaged = set(map(id, chosen))
    for weights in _adapted(model):
        excluded = [v.path for v in weights if id(v) not in averaged]
        if 0 < len(excluded) < len(weights):
            raise ValueError(
                "`include` must match both the kernel of a layer and its "
                "adapters (LoRA), because Keras merges them in files. "
                f"Received: an `include` that excludes only {excluded}. "
                "Include a frozen kernel, too: its average equals its value."
            )


def _adapted(model: Any) -> Iterator[list[Any]]:
    """The floating-point weights that are merged, layer by layer."""
    for layer in flattened_layers(model):
        if getattr(layer, "lora_enabled", False):
            yield [
                variable
                for variable in layer.weights
                if variable is not getattr(layer, "bias", None)
                and keras.backend.is_float_dtype(variable.dtype)
            ]
