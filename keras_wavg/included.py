"""The weights of a model that are averaged."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_wavg import arguments
from keras_wavg.arguments import Include


def averaged_variables(
    model: Any, include: Include, target: Any = None
) -> list[Any]:
    """The variables of a model that are averaged, in the model's order.

    Args:
        model: A Keras model.
        include: See `keras_wavg.arguments.Include`.
        target: A part of the model whose weights are not averaged, or `None`.
            Defaults to `None`.

    Raises:
        ValueError: If there is none.
    """
    chosen = arguments.predicate(include)
    excluded = {id(v) for v in getattr(target, "weights", ())}
    variables = [
        variable
        for variable in floating(model.weights)
        if chosen(variable.path) and id(variable) not in excluded
    ]
    if not variables and include is None:
        raise ValueError(
            "The model must have at least one floating-point weight. Received: "
            f"model={model!r}, which has none."
        )
    if not variables:
        raise ValueError(
            "`include` must match the path of at least one floating-point "
            f"weight of the model. Received: include={include!r}, for weights "
            f"with the paths {[variable.path for variable in model.weights]}"
        )
    return variables


def floating(variables: Sequence[Any]) -> list[Any]:
    """The floating-point variables that can be averaged."""
    return [
        variable
        for variable in variables
        if keras.backend.is_float_dtype(variable.dtype)
        # The scales of float8 training, which no optimizer updates.
        and not getattr(variable, "overwrite_with_gradient", False)
    ]
