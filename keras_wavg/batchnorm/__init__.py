"""Measures moving statistics of `BatchNormalization` for given weights."""

from keras_wavg.batchnorm.measurement import Measurement, update_bn

__all__ = ["Measurement", "update_bn"]
