"""What this package reads of Keras that Keras does not promise to keep.

Each has a way to go on where it is gone, and a test that tells so.
"""

from collections.abc import Mapping
from typing import Any


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
