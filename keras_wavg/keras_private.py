"""The private parts of Keras that this package uses.

A test of each fails once Keras changes it. There are fallbacks where possible.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops


def has_value(variable: Any) -> bool:
    """Whether a variable has a value.

    On JAX an error in the first batch of `predict` or `evaluate` leaves the
    variables of a model without values.
    """
    return getattr(variable, "_value", True) is not None


def pending_state(model: Any) -> Mapping[str, Any]:
    """The arrays that the trainer of JAX keeps outside of the variables.

    During an epoch the current weights are only here. The public way,
    `Callback.model`, writes them and the optimizer's variables back, and the
    next step reads all of them again, which takes four times as long as an
    update.

    Args:
        model: A Keras model.

    Returns:
        Dict from attributes of the model that are lists of variables to lists
        of arrays. Empty if the variables have their values.
    """
    if getattr(model, "_jax_state_synced", True):
        return {}
    return getattr(model, "_jax_state", None) or {}


def flattened_layers(model: Any) -> list[Any]:
    """All layers of a model, including nested layers and the model itself."""
    if hasattr(model, "_flatten_layers"):
        return list(model._flatten_layers())
    layers = [model]
    for layer in getattr(model, "layers", ()):
        layers += flattened_layers(layer)
    return layers


def reduction_axes(layer: Any) -> list[int]:
    """The axes that a `BatchNormalization` reduces."""
    known = getattr(layer, "_reduction_axes", None)
    if known is not None:
        return list(known)
    rank = layer.input_spec.ndim
    return [axis for axis in range(rank) if axis != layer.axis % rank]


def synchronized_moments(layer: Any, inputs: Any, mask: Any) -> Any:
    """Mean and variance of a batch across all replicas.

    Args:
        layer: A `BatchNormalization` with `synchronized=True`.
        inputs: Tensor.
        mask: Boolean tensor or `None`.
    """
    return layer._moments(inputs, mask)


def rematerialization(layer: Any) -> dict[str, Any]:
    """The private attribute of a layer that was made in a `RematScope`."""
    own = vars(layer)
    return {k: own[k] for k in ("_remat_mode",) if own.get(k) is not None}


class NoDonation:
    """Mixin of a model whose weights `predict` on JAX does not donate.

    JAX donates the state of a model to each batch. This donates a copy, so that
    the variables always have values.
    """

    def _get_jax_state(self, **kinds: Any) -> Any:
        kinds["purge_model_variables"] = False
        state = super()._get_jax_state(**kinds)  # type: ignore[misc]
        return keras.tree.map_structure(ops.copy, state)

    def jax_state_sync(self) -> None:
        """Do nothing: the variables have their values."""
