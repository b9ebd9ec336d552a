"""Weight averaging for Keras 3 on TensorFlow, JAX and torch.

    model.fit(x, y, validation_data=(x_val, y_val), callbacks=[EMA(0.999)])

Importing this package imports neither Keras nor a backend; using a name of it
does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_wavg.callbacks.ema import EMA

__all__ = ["EMA"]

_HOMES = {"EMA": "keras_wavg.callbacks.ema"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
