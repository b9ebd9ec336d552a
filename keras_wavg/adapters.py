"""Layers with adapters (LoRA), which Keras writes merged into their kernels."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_wavg.keras_private import flattened_layers


def merged_in_files(model: Any) -> set[int]:
    """The ids of weights that Keras saves merged: a file gives others back.

    Args:
        model: A Keras model.

    Returns:
        Set of integers.
    """
    return {id(v) for weights in _adapted(model) for v in weights}


def has_quantized_adapters(model: Any) -> bool:
    """Whether Keras saves adapters merged into kernels that are integers.

    The weights before the merge are not in a file then.

    Args:
        model: A Keras model.
    """
    return any(
        getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is not None
        for layer in flattened_layers(model)
    )


def refuse_a_part(model: Any, chosen: Sequence[Any]) -> None:
    """Refuse averages of adapters without those of their kernel, or vice versa.

    Merged with raw ones in a file they would be lost, and the raw ones too.

    Args:
        model: A Keras model.
        chosen: The variables that are averaged.

    Raises:
        ValueError: If a kernel and its adapters are not together.
    """
    averaged = set(map(id, chosen))
    for weights in _adapted(model):
        left_out = [v.path for v in weights if id(v) not in averaged]
        if 0 < len(left_out) < len(weights):
            raise ValueError(
                "`include` must take the kernel of a layer and its adapters "
                "(LoRA) together, as Keras saves them as one. Received: an "
                f"`include` that leaves out {left_out} alone. A frozen kernel "
                "is the average of itself: include it, too."
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
