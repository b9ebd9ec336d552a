"""Restores the weights of a model, whichever average it holds."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_wavg import swapping
from keras_wavg.backend import recovered_weights, sync_weights
from keras_wavg.warning import warn


def restore_raw_weights(model: Any) -> None:
    """Restore the raw weights of a model, whichever average it holds.

    Args:
        model: A built Keras model.
    """
    if not swapping.any_swapped(model.weights):
        return
    sync_weights(model)
    for owner in swapping.owners(model.weights):
        if owner.model is model and not owner.has_all_weights_in_model():
            # The raw weights could be restored only in part.
            swapping.forget(owner)
            warn(
                "The weights of the model were replaced (by `quantize`, `pop` "
                "or a new layer) while they held an average. They are kept. "
                "Call `restore()` before such a change.",
            )
    swapping.restore(model.weights)


@contextlib.contextmanager
def preserved_weights(model: Any) -> Iterator[None]:
    """Context after which a model holds what it held on entry.

    Args:
        model: A Keras model.

    Yields:
        `None`.
    """
    sync_weights(model)
    with swapping.preserved(model.weights), recovered_weights(model):
        yield
