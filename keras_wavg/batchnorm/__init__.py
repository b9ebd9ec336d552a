"""Measures moving statistics of `BatchNormalization` for given weights."""

from keras_wavg.batchnorm.measurement import Measurement, update_bn
from keras_wavg.batchnorm.normalization import modules_of_torch

__all__ = ["Measurement", "modules_of_torch", "update_bn"]
