"""Predictions of several weights of one model."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy

from keras_wavg import arguments
from keras_wavg.backend import assign, attach_weights, host_copies


@contextlib.contextmanager
def weights_given_back(model: Any) -> Iterator[None]:
    """Context after which a model holds what it held before, bit for bit."""
    attach_weights(model)
    before = host_copies(model.weights)
    try:
        yield
    finally:
        # What failed in the midst of a prediction left them elsewhere.
        attach_weights(model)
        assign(model.weights, before)


def mean_prediction(
    model: Any,
    x: Any,
    members: Sequence[contextlib.AbstractContextManager[None]],
    *,
    verbose: Any,
    **options: Any,
) -> Any:
    """The mean of predictions, in float64.

    Args:
        model: A Keras model.
        x: What `model.predict` takes.
        members: Contexts in which the model holds the weights to predict with.
        verbose: `"auto"`, 1 or 0, as in `model.predict`.
        **options: What else `model.predict` takes.

    Returns:
        NumPy array(s) of the dtype of the predictions.

    Raises:
        ValueError: If `x` is an iterator, gone after the first prediction.
    """
    arguments.repeatable("x", x)
    bar = keras.utils.Progbar(
        len(members), verbose=int(verbose in {"auto", 1}), unit_name="member"
    )
    total = None
    for member in members:
        with member:
            predicted = model.predict(x, verbose=0, **options)
        total = _added(total, predicted)
        bar.add(1)
    return keras.tree.map_structure(
        lambda sums, like: (sums / len(members)).astype(like.dtype),
        total,
        predicted,
    )


def _added(total: Any, predicted: Any) -> Any:
    if total is None:
        return keras.tree.map_structure(
            lambda array: array.astype("float64"), predicted
        )
    return keras.tree.map_structure(numpy.add, total, predicted)
