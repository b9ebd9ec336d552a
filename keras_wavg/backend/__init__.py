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
