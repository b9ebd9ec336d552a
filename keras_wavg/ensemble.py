"""Averages the predictions of several weights of one model."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy

from keras_wavg import arguments
from keras_wavg.backend import assign, host_copies, sync_weights


@contextlib.contextmanager
def weights_restored(model: Any) -> Iterator[None]:
    """Context after which a model has its previous weights, bit for bit."""
    sync_weights(model)
    previous = host_copies(model.weights)
    try:
        yield
    finally:
        # An error during a prediction may have left them detached.
        sync_weights(model)
        assign(model.weights, previous)


def mean_prediction(
    model: Any,
    x: Any,
    members: Sequence[contextlib.AbstractContextManager[None]],
    *,
    verbose: Any,
    **options: Any,
) -> Any:
    """Average predictions in float64.

    Args:
        model: A Keras model.
        x: Data, as for `model.predict`.
        members: Sequence of contexts, in each of which the model has the
            weights to predict with.
        verbose: `"auto"` or 1 for a progress bar, 0 for none.
        **options: Other arguments of `model.predict`.

    Returns:
        NumPy array(s) of the dtype of the predictions.

    Raises:
        ValueError: If `x` is an iterator, which can be iterated only once.
    """
    arguments.repeatable("x", x)
    bar = keras.utils.Progbar(
        len(members), verbose=int(verbose in {"auto", 1}), unit_name="member"
    )
    total = None
    for member in members:
        with member:
            predicted = model.predict(x, verbose=0, **options)
        total = _add(total, predicted)
        bar.add(1)
    return keras.tree.map_structure(
        lambda sums, like: (sums / len(members)).astype(like.dtype),
        total,
        predicted,
    )


def _add(total: Any, predicted: Any) -> Any:
    if total is None:
        return keras.tree.map_structure(
            lambda array: array.astype("float64"), predicted
        )
    return keras.tree.map_structure(numpy.add, total, predicted)
