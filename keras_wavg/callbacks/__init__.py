"""Callbacks that average weights while `fit` trains them."""

from keras_wavg.callbacks.ema import EMA
from keras_wavg.callbacks.fge import FGE
from keras_wavg.callbacks.lawa import LAWA
from keras_wavg.callbacks.lookahead import Lookahead
from keras_wavg.callbacks.swa import SWA
from keras_wavg.callbacks.swag import SWAG

__all__ = ["EMA", "FGE", "LAWA", "SWA", "SWAG", "Lookahead"]
