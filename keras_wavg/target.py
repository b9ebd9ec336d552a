"""The weights of another model that are set to the average."""

import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_wavg.included import floating


def require_layer(target: Any) -> Any:
    """The argument `target`.

    Raises:
        ValueError: If it is neither `None` nor a Keras model or layer.
    """
    if target is not None and not isinstance(target, keras.Layer):
        raise ValueError(
            "`target` must be a Keras model or layer, or `None`. Received: "
            f"target={target!r}"
        )
    return target


def target_variables(
    target: Any, averaged: Sequence[Any], model: Any
) -> list[Any]:
    """The weights of a target, in the order of the averaged weights.

    Args:
        target: A Keras model or layer.
        averaged: List of the averaged variables.
        model: The trained model.

    Raises:
        ValueError: If the weights differ in number, name or shape, or if the
            model trains the target.
    """
    variables = floating(target.weights)
    if not target.built or _kinds(variables) != _kinds(averaged):
        raise ValueError(
            "`target` must be built and have the averaged weights, in the same "
            f"order. Received: target={target!r} with {_listed(variables)}; "
            f"averaged are {_listed(averaged)}. Choose the averaged weights "
            "with `include`."
        )
    trained = {id(variable) for variable in model.trainable_variables}
    if any(id(variable) in trained for variable in variables):
        raise ValueError(
            "`target` must not be trained. Received: a trainable part of the "
            f"model, target={target!r}. Set `target.trainable = False` before "
            "`compile`."
        )
    return variables


def _kinds(variables: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    # Keras numbers variables that have no name, such as those of torch modules.
    return [
        (re.sub(r"_\d+$", "", variable.name), tuple(variable.shape))
        for variable in variables
    ]


def _listed(variables: Sequence[Any]) -> str:
    most = 3
    kinds = [f"{name} {shape}" for name, shape in _kinds(variables[:most])]
    return f"{len(variables)} weights ({', '.join(kinds)}, ...)"
