"""The float32 averages of the running backend, one small module for each.

These are the only rooms that know JAX, TensorFlow or torch. Each has one class,
`Averages`, with the same verbs:

- `bind(model)`: find the variables, at the beginning of each `fit`
- `begin(model)`: let the averages be the weights of now
- `update(model, reading)`: one fused call, nothing read back
- `load(averages, counters)`: go on from a saved state
- `read()`, `snapshot()`, `are_in_model()`: what a swap needs
- `counters`: the counts, as integers

`device` is `None`, and the averages live where their weights do, or `"cpu"`:
they and, while an average is in the model, the raw weights live in host memory,
and an accelerator holds nothing of ours between updates.
"""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import keras

from keras_wavg.schedules import Schedule


def _module() -> Any:
    backend = keras.config.backend()
    if backend not in {"jax", "tensorflow", "torch"}:
        raise NotImplementedError(
            "Averaging in training works on the JAX, TensorFlow and torch "
            f"backends. Received: keras.config.backend()={backend!r}. Set the "
            "environment variable `KERAS_BACKEND` before Keras is imported."
        )
    return importlib.import_module(f"{__name__}.{backend}")


def averages_of(
    variables: Sequence[Any], schedule: Schedule, start: int, device: str | None
) -> Any:
    """The `Averages` of some variables, on the running backend.

    Args:
        variables: Keras variables of floating type.
        schedule: A `Schedule`.
        start: Integer, the optimizer step from which samples count.
        device: `None` or `"cpu"`.

    Returns:
        An `Averages`.

    Raises:
        NotImplementedError: If the backend is none of the three.
    """
    return _module().Averages(variables, schedule, start, device)


def randomness_kept() -> contextlib.AbstractContextManager[Any]:
    """Context that leaves the backend's random numbers as they were."""
    return getattr(_module(), "randomness_kept", contextlib.nullcontext)()


def attach_weights(model: Any) -> None:
    """Let the variables of a model be its weights of now, in mid-epoch too.

    During an epoch JAX's trainer keeps the weights elsewhere; it takes them
    back out of the variables for its next step.

    Args:
        model: A Keras model.
    """
    callback = keras.callbacks.Callback()
    callback.set_model(model)
    _ = callback.model
