"""The float32 averages of the running backend, one small module for each.

These are the only rooms that know JAX, TensorFlow or torch. Each has one class,
`Averages`, with the same verbs: `begin`, `update`, `read` and `counters`.
"""

import importlib
from typing import Any

import keras


def averages_class() -> Any:
    """The `Averages` of `keras.config.backend()`.

    Returns:
        A class.

    Raises:
        NotImplementedError: If the backend is none of the three.
    """
    backend = keras.config.backend()
    if backend not in {"jax", "tensorflow", "torch"}:
        raise NotImplementedError(
            "Averaging in training works on the JAX, TensorFlow and torch "
            f"backends. Received: keras.config.backend()={backend!r}. Set the "
            "environment variable `KERAS_BACKEND` before Keras is imported."
        )
    return importlib.import_module(f"{__name__}.{backend}").Averages
