"""Weight averaging for Keras 3 on TensorFlow, JAX and torch.

    model.fit(x, y, validation_data=(x_val, y_val), callbacks=[EMA(0.999)])
    average_checkpoints(["8.weights.h5", "9.weights.h5"], "mean.weights.h5")

Importing this package imports neither Keras nor a backend. They are imported
with the first name that needs them; the names for saved weights need neither.

Modules in reading order:

- `schedules` (the coefficients of updates), `profile` (the coefficients of all
  samples), `horizon` (decays from other units)
- `averages/` (the computation: one module for each backend, and averages in
  host memory)
- `averaged_weights` (averages of a model), `clock` (counts optimizer steps),
  `sampling` (when a sample is due), `plan` (the settings of a callback),
  `model_average` (all of these for one model), `swapping` (which weights are in
  the model)
- `callbacks/weight_averaging` (the hooks), and one module for each callback
- `state` (the state in a file of the model), `saving` (how Keras saves it)
- `batchnorm/`, `learning_rates`, `plots/`: independent of the others
- `files/`: saved weights, without Keras; `soup/` and `cli/` use it
"""

import importlib
import importlib.util
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
    from keras_wavg.callbacks.switch_ema import SwitchEMA
    from keras_wavg.callbacks.weight_averaging import WeightAveraging
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
    "SwitchEMA",
    "WeightAveraging",
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
    "SwitchEMA": "keras_wavg.callbacks.switch_ema",
    "WeightAveraging": "keras_wavg.callbacks.weight_averaging",
    "AnnealToConstant": "keras_wavg.learning_rates",
    "AverageEvaluator": "keras_wavg.callbacks.evaluator",
    "CyclicLearningRate": "keras_wavg.learning_rates",
    "Lookahead": "keras_wavg.callbacks.lookahead",
    "PowerEMA": "keras_wavg.callbacks.power_ema",
    "Profile": "keras_wavg.profile",
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


_BACKENDS = ("tensorflow", "jax", "torch")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _imported(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_imported(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _BACKENDS:
            raise
        found = [name for name in _BACKENDS if importlib.util.find_spec(name)]
        raise ImportError(
            f"The backend of Keras must be installed. Received: {missing!r} "
            f"as the backend, while {', '.join(found) or 'no backend'} is "
            "installed. Set the environment variable `KERAS_BACKEND` to an "
            "installed backend before Python starts, or run "
            f'`pip install "keras-wavg[{missing}]"`.',
            name=missing,
        ) from error
