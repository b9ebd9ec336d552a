"""Weight averaging for Keras 3 on TensorFlow, JAX and torch.

    model.fit(x, y, validation_data=(x_val, y_val), callbacks=[EMA(0.999)])

Importing this package imports neither Keras nor a backend; using a name of it
does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_wavg import plots
    from keras_wavg.batchnorm import update_bn
    from keras_wavg.callbacks.ema import EMA
    from keras_wavg.callbacks.fge import FGE
    from keras_wavg.callbacks.lawa import LAWA
    from keras_wavg.callbacks.lookahead import Lookahead
    from keras_wavg.callbacks.swa import SWA
    from keras_wavg.callbacks.swag import SWAG
    from keras_wavg.learning_rates import (
        AnnealToConstant,
        CyclicLearningRate,
        TriangularLearningRate,
    )

__all__ = [
    "EMA",
    "FGE",
    "LAWA",
    "SWA",
    "SWAG",
    "AnnealToConstant",
    "CyclicLearningRate",
    "Lookahead",
    "TriangularLearningRate",
    "plots",
    "update_bn",
]

_HOMES = {
    "EMA": "keras_wavg.callbacks.ema",
    "FGE": "keras_wavg.callbacks.fge",
    "LAWA": "keras_wavg.callbacks.lawa",
    "SWA": "keras_wavg.callbacks.swa",
    "SWAG": "keras_wavg.callbacks.swag",
    "AnnealToConstant": "keras_wavg.learning_rates",
    "CyclicLearningRate": "keras_wavg.learning_rates",
    "Lookahead": "keras_wavg.callbacks.lookahead",
    "TriangularLearningRate": "keras_wavg.learning_rates",
    "update_bn": "keras_wavg.batchnorm",
}


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("keras_wavg.plots")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
