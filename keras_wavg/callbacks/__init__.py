"""Callbacks that average weights while `fit` trains them."""

from keras_wavg.callbacks.bema import BEMA
from keras_wavg.callbacks.ema import EMA
from keras_wavg.callbacks.evaluator import AverageEvaluator
from keras_wavg.callbacks.fge import FGE
from keras_wavg.callbacks.lawa import LAWA
from keras_wavg.callbacks.lookahead import Lookahead
from keras_wavg.callbacks.power_ema import PowerEMA
from keras_wavg.callbacks.swa import SWA
from keras_wavg.callbacks.swag import SWAG

__all__ = [
    "BEMA",
    "EMA",
    "FGE",
    "LAWA",
    "SWA",
    "SWAG",
    "AverageEvaluator",
    "Lookahead",
    "PowerEMA",
]
