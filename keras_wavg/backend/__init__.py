"""Access to the values of Keras variables on the running backend.

Only this package and `keras_wavg.averages` import JAX, TensorFlow or torch.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.keras_private import has_value


def name_of_backend() -> str:
    """The name of the running backend.

    Returns:
        `"jax"`, `"tensorflow"` or `"torch"`.

    Raises:
        NotImplementedError: For any other backend.
    """
    backend: str = keras.config.backend()
    if backend not in {"jax", "tensorflow", "torch"}:
        raise NotImplementedError(
            "Averaging during training requires the JAX, TensorFlow or torch "
            f"backend. Received: keras.config.backend()={backend!r}. Set the "
            "environment variable `KERAS_BACKEND` before importing Keras."
        )
    return backend


def _module() -> Any:
    return importlib.import_module(f"{__name__}.{name_of_backend()}")


def preserved_random_state() -> contextlib.AbstractContextManager[Any]:
    """Context that preserves the state of the backend's random generator."""
    function = getattr(
        _module(), "preserved_random_state", contextlib.nullcontext
    )
    context: contextlib.AbstractContextManager[Any] = function()
    return context


def sync_weights(model: Any) -> None:
    """Write the current weights of a model into its variables.

    During an epoch the trainer of JAX keeps the weights outside of the
    variables. It reads them from the variables again for its next step.

    Args:
        model: A Keras model.
    """
    callback = keras.callbacks.Callback()
    callback.set_model(model)
    _ = callback.model


@contextlib.contextmanager
def recovered_weights(model: Any) -> Iterator[None]:
    """Context after which the variables have values, even after an error.

    The trainer of JAX removes the values of the variables, and does not restore
    them if the first batch fails.

    Args:
        model: A Keras model.

    Yields:
        `None`.
    """
    sync_weights(model)
    variables = model.variables
    values = [variable.value for variable in variables]
    try:
        yield
    finally:
        sync_weights(model)
        for variable, value in zip(variables, values, strict=True):
            if not has_value(variable):
                variable.assign(value)


def assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign values to Keras variables without moving these."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(_placed_like(value, variable))


def _placed_like(value: Any, variable: Any) -> Any:
    return getattr(_module(), "placed_like", lambda a, _: a)(value, variable)


def device_copies(variables: Sequence[Any]) -> list[Any]:
    """Copies of the values of Keras variables, on their devices."""
    copies: list[Any] = _module().device_copies(variables)
    return copies


def host_copies(variables: Sequence[Any]) -> list[Any]:
    """Copies of the values of Keras variables, in host memory."""
    copies: list[Any] = _module().host_copies(variables)
    return copies


def host_copy(array: Any) -> Any:
    """A copy of a tensor as a NumPy array that owns its memory.

    If the tensor spans processes, only the local part is copied.
    """
    if hasattr(_module(), "host_copy"):
        return _module().host_copy(array)
    return numpy.array(keras.ops.convert_to_numpy(array))


def local_part(value: Any) -> Any:
    """The part of a tensor in this process, if the tensor spans processes."""
    return getattr(_module(), "local_part", lambda a: a)(value)


def paths_without_parameters(model: Any) -> list[str]:
    """Paths of the weights that an optimizer of the backend cannot train."""
    function: Any = getattr(_module(), "paths_without_parameters", lambda _: [])
    paths: list[str] = function(model)
    return paths


def normalization_modules(layer: Any) -> dict[str, Any]:
    """The batch normalizations of torch in a layer, by name."""
    function: Any = getattr(_module(), "normalization_modules", lambda _: {})
    modules: dict[str, Any] = function(layer)
    return modules


def traced_function() -> Any:
    """What identifies the function that the backend is tracing, if any."""
    return getattr(_module(), "traced_function", lambda: None)()


def require_readable(model: Any) -> None:
    """Refuse to read weights that are sharded across processes.

    Args:
        model: A Keras model.

    Raises:
        ValueError: If the model has such weights.
    """
    sync_weights(model)
    unreadable: Any = getattr(_module(), "unreadable", lambda _: [])
    paths: list[str] = unreadable(model.weights)
    if paths:
        raise ValueError(
            "Weights can only be read or saved to a file if a single process "
            f"has all of them. Received: a model with {len(paths)} weights "
            f"(the first is '{paths[0]}') that are sharded across processes. "
            "On JAX, save the model with `keras.callbacks.OrbaxCheckpoint`, "
            "load the checkpoint in a single process, and read or save the "
            "weights there. On torch, call `variable.value.full_tensor()` in "
            "every process."
        )


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether any Keras variable spans several processes."""
    function: Any = getattr(_module(), "span_processes", lambda _: False)
    return bool(function(variables))


def sharded_like(value: Any, variable: Any) -> Any:
    """A value, sharded like a Keras variable if that spans processes."""
    is_sharded = span_processes([variable])
    return _placed_like(value, variable) if is_sharded else value


def to_tensor(value: Any, variable: Any | None, model: Any) -> Any:
    """Convert a value to a tensor, sharded like the variables of a model.

    Args:
        value: Array, such as one of `host_copies`, or tensor.
        variable: The Keras variable with the same sharding, or `None` to
            replicate the value.
        model: A Keras model.
    """
    function = getattr(_module(), "to_tensor", None)
    if function is None:
        return keras.ops.convert_to_tensor(value)
    return function(value, variable, model)


def same_values(arrays: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of the same dtype are equal, pair by pair.

    NaN equals NaN.

    Args:
        arrays: Sequence of tensors.
        others: Sequence of tensors, or of arrays in host memory.

    Returns:
        List of booleans.
    """
    same: list[bool] = _module().same_values(arrays, others)
    return same
