"""Weight averaging for Keras 3 on TensorFlow, JAX and torch.

    model.fit(x, y, validation_data=(x_val, y_val), callbacks=[EMA(0.999)])
    average_checkpoints(["8.weights.h5", "9.weights.h5"], "mean.weights.h5")

Importing this package imports neither Keras nor a backend; using a name of it
does. Names for saved weights import neither.

Where to find what, in the order in which to read:

- `schedules` (the coefficients), `profile` (what they amount to), `horizon`
  (decays from other units)
- `averages/` (the update: a module a backend, and averages in host memory)
- `shadow` (the average of one model), `clock` (which step it is), `sampling`
  (when a sample is due), `plan` (what a callback asks for), `running` (all
  this for one model), `swapping` (what is in each variable)
- `callbacks/averaging` (the hooks) and its neighbors, one class a module
- `state` (what is in a file of the model), `saveable` (how it gets there)
- `batchnorm/`, `learning_rates`, `plots/`: on their own
- `files/`: saved weights, without Keras; above it `soup/` and `cli/`
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_wavg import plots
    from keras_wavg.batchnorm import update_bn
    from keras_wavg.callbacks.bema import BEMA
    from keras_wavg.callbacks.ema import EMA
    from keras_wavg.callbacks.evaluator import AverageEvaluator
    from keras_wavg.callbacks.fge import FGE
    from keras_wavg.callbacks.lawa import LAWA
    from keras_wavg.callbacks.lookahead import Lookahead
    from keras_wavg.callbacks.power_ema import PowerEMA
    from keras_wavg.callbacks.resume import resume
    from keras_wavg.callbacks.swa import SWA
    from keras_wavg.callbacks.swag import SWAG
    from keras_wavg.files import coefficients
    from keras_wavg.files.average import average_checkpoints
    from keras_wavg.files.difference import diff_checkpoints
    from keras_wavg.files.inspection import inspect_checkpoint
    from keras_wavg.files.select import select_checkpoints
    from keras_wavg.files.synthesis import sweep, synthesize
    from keras_wavg.horizon import decay_from
    from keras_wavg.learning_rates import (
        AnnealToConstant,
        CyclicLearningRate,
        TriangularLearningRate,
    )
    from keras_wavg.profile import Profile
    from keras_wavg.soup import greedy_soup

__all__ = [
    "BEMA",
    "EMA",
    "FGE",
    "LAWA",
    "SWA",
    "SWAG",
    "AnnealToConstant",
    "AverageEvaluator",
    "CyclicLearningRate",
    "Lookahead",
    "PowerEMA",
    "Profile",
    "TriangularLearningRate",
    "average_checkpoints",
    "coefficients",
    "decay_from",
    "diff_checkpoints",
    "greedy_soup",
    "inspect_checkpoint",
    "plots",
    "resume",
    "select_checkpoints",
    "sweep",
    "synthesize",
    "update_bn",
]

_HOMES = {
    "BEMA": "keras_wavg.callbacks.bema",
    "EMA": "keras_wavg.callbacks.ema",
    "FGE": "keras_wavg.callbacks.fge",
    "LAWA": "keras_wavg.callbacks.lawa",
    "SWA": "keras_wavg.callbacks.swa",
    "SWAG": "keras_wavg.callbacks.swag",
    "AnnealToConstant": "keras_wavg.learning_rates",
    "AverageEvaluator": "keras_wavg.callbacks.evaluator",
    "CyclicLearningRate": "keras_wavg.learning_rates",
    "Lookahead": "keras_wavg.callbacks.lookahead",
    "PowerEMA": "keras_wavg.callbacks.power_ema",
    "Profile": "keras_wavg.profile",
    "TriangularLearningRate": "keras_wavg.learning_rates",
    "average_checkpoints": "keras_wavg.files.average",
    "decay_from": "keras_wavg.horizon",
    "diff_checkpoints": "keras_wavg.files.difference",
    "greedy_soup": "keras_wavg.soup",
    "inspect_checkpoint": "keras_wavg.files.inspection",
    "resume": "keras_wavg.callbacks.resume",
    "select_checkpoints": "keras_wavg.files.select",
    "sweep": "keras_wavg.files.synthesis",
    "synthesize": "keras_wavg.files.synthesis",
    "update_bn": "keras_wavg.batchnorm",
}
_MODULES = {
    "coefficients": "keras_wavg.files.coefficients",
    "plots": "keras_wavg.plots",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
