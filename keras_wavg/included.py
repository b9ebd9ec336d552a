"""The weights of a model that are averaged."""

from typing import Any

import keras

from keras_wavg import arguments
from keras_wavg.arguments import Include


def averaged_variables(model: Any, include: Include) -> list[Any]:
    """The variables of a model that are averaged, in the model's order.

    Raises:
        ValueError: If there is none.
    """
    chosen = arguments.predicate(include)
    variables = [
        variable
        for variable in model.weights
        if keras.backend.is_float_dtype(variable.dtype)
        # The scales of float8 training, which no optimizer updates.
        and not getattr(variable, "overwrite_with_gradient", False)
        and chosen(variable.path)
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
