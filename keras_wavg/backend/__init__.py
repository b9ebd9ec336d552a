"""Values of Keras variables, as the running backend has them.

Besides `keras_wavg.averages`, these are the only modules that know JAX,
TensorFlow or torch.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_wavg.keras_private import has_value


def name_of_backend() -> str:
    """The running backend.

    Returns:
        `"jax"`, `"tensorflow"` or `"torch"`.

    Raises:
        NotImplementedError: If it is another one.
    """
    backend: str = keras.config.backend()
    if backend not in {"jax", "tensorflow", "torch"}:
        raise NotImplementedError(
            "Averaging in training works on the JAX, TensorFlow and torch "
            f"backends. Received: keras.config.backend()={backend!r}. Set the "
            "environment variable `KERAS_BACKEND` before Keras is imported."
        )
    return backend


def _module() -> Any:
    return importlib.import_module(f"{__name__}.{name_of_backend()}")


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


@contextlib.contextmanager
def weights_survive(model: Any) -> Iterator[None]:
    """Context after which the variables have the weights, also after an error.

    JAX's trainer takes them out of the variables, and if the first batch fails
    nobody puts them back.

    Args:
        model: A Keras model.

    Yields:
        `None`.
    """
    attach_weights(model)
    variables = model.variables
    values = [variable.value for variable in variables]
    try:
        yield
    finally:
        attach_weights(model)
        for variable, value in zip(variables, values, strict=True):
            if not has_value(variable):
                variable.assign(value)


def assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign values to Keras variables, which stay on their devices."""
    placed = getattr(_module(), "placed", lambda value, _: value)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(placed(value, variable))


def device_copies(variables: Sequence[Any]) -> list[Any]:
    """Copies of the values of Keras variables, on their devices."""
    copies: list[Any] = _module().device_copies(variables)
    return copies


def host_copies(variables: Sequence[Any]) -> list[Any]:
    """Copies of the values of Keras variables, in host memory."""
    copies: list[Any] = _module().host_copies(variables)
    return copies


def snapshot(variables: Sequence[Any]) -> list[Any]:
    """The values of Keras variables, to be assigned again if a load fails.

    In host memory where they can be had there, not where an array spans
    processes.
    """
    function = getattr(_module(), "snapshot", host_copies)
    values: list[Any] = function(variables)
    return values


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN.

    Args:
        ones: Sequence of tensors.
        others: Sequence of tensors, or of arrays in host memory.

    Returns:
        List of booleans.
    """
    same: list[bool] = _module().same_values(ones, others)
    return same
