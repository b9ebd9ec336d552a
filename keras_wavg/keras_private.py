"""What this package uses of Keras that Keras does not promise to keep.

Each has a test that tells when it is gone. What can go on without it, does.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops


def has_value(variable: Any) -> bool:
    """Whether a variable holds a value.

    On JAX an error in the first batch of `predict` or `evaluate` leaves a model
    without them.
    """
    return getattr(variable, "_value", True) is not None


def pending_state(model: Any) -> Mapping[str, Any]:
    """The arrays that JAX's trainer keeps out of the variables.

    During an epoch the newest weights are here and nowhere else. The public
    way, `Callback.model`, writes all of them and the optimizer's back into
    their variables, and the next step takes them all out again: four times the
    cost of an update.

    Args:
        model: A Keras model.

    Returns:
        Lists of arrays by the name of the attribute of the model that lists
        their variables; empty if the variables have their values.
    """
    if getattr(model, "_jax_state_synced", True):
        return {}
    return getattr(model, "_jax_state", None) or {}


def flattened_layers(model: Any) -> list[Any]:
    """All layers of a model, those of its layers too, and itself."""
    if hasattr(model, "_flatten_layers"):
        return list(model._flatten_layers())
    layers = [model]
    for layer in getattr(model, "layers", ()):
        layers += flattened_layers(layer)
    return layers


def reduction_axes(layer: Any) -> list[int]:
    """The axes over which a `BatchNormalization` takes its statistics."""
    known = getattr(layer, "_reduction_axes", None)
    if known is not None:
        return list(known)
    rank = layer.input_spec.ndim
    return [axis for axis in range(rank) if axis != layer.axis % rank]


def synchronized_moments(layer: Any, inputs: Any, mask: Any) -> Any:
    """Mean and variance of a batch, over all replicas.

    Args:
        layer: A `BatchNormalization` with `synchronized=True`.
        inputs: Tensor.
        mask: Boolean tensor or `None`.
    """
    return layer._moments(inputs, mask)


class KeepsWeights:
    """Mixin of a model that `predict` on JAX leaves its weights.

    JAX donates the state of a model to each batch. With a copy, the weights
    stay where they are, whatever happens.
    """

    def _get_jax_state(self, **kinds: Any) -> Any:
        kinds["purge_model_variables"] = False
        state = super()._get_jax_state(**kinds)  # type: ignore[misc]
        return keras.tree.map_structure(ops.copy, state)

    def jax_state_sync(self) -> None:
        """Leave the weights as they are."""
