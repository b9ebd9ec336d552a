"""Values of Keras variables, as the running backend has them.

Besides `keras_wavg.averages`, these are the only modules that know JAX,
TensorFlow or torch.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy

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


def host_copy(array: Any) -> Any:
    """A copy of a tensor in host memory, as a NumPy array of its own.

    Where an array spans processes, of the part that this process has.
    """
    if hasattr(_module(), "host_copy"):
        return _module().host_copy(array)
    return numpy.array(keras.ops.convert_to_numpy(array))


def own_part(value: Any) -> Any:
    """What this process has of a tensor that spans processes, or the tensor."""
    return getattr(_module(), "own_part", lambda a: a)(value)


def without_parameters(model: Any) -> list[str]:
    """Paths of the weights that an optimizer of the backend cannot reach."""
    function: Any = getattr(_module(), "without_parameters", lambda _: [])
    paths: list[str] = function(model)
    return paths


def require_readable(model: Any) -> None:
    """Refuse to read weights of which a process has only a part.

    Args:
        model: A Keras model.

    Raises:
        ValueError: If it has such weights.
    """
    attach_weights(model)
    unreadable: Any = getattr(_module(), "unreadable", lambda _: [])
    paths: list[str] = unreadable(model.weights)
    if paths:
        raise ValueError(
            "A process can read weights, and save them to a file, if it has "
            f"all of them. Received: a model of which {len(paths)} weights, "
            f"'{paths[0]}' the first, are spread over several processes. On "
            "JAX, save the model by `keras.callbacks.OrbaxCheckpoint`, load "
            "that in a single process, and read or save the weights there. On "
            "torch, call `variable.value.full_tensor()` in every process."
        )


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether Keras variables are of several processes together."""
    function: Any = getattr(_module(), "span_processes", lambda _: False)
    return bool(function(variables))


def laid_out(value: Any, variable: Any) -> Any:
    """A value of a Keras variable, spread like it if it spans processes."""
    return getattr(_module(), "laid_out", lambda a, _: a)(value, variable)


def on_devices(value: Any, variable: Any | None, model: Any) -> Any:
    """A value as a tensor of the backend, laid out as variables of the model.

    Args:
        value: Array, one of `host_copies`, or tensor.
        variable: The Keras variable that it is for, or `None` if it is a
            number.
        model: A Keras model.
    """
    function = getattr(_module(), "on_devices", None)
    if function is None:
        return keras.ops.convert_to_tensor(value)
    return function(value, variable, model)


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
