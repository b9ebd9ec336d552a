"""Moving statistics of `BatchNormalization`, measured for given weights."""

from keras_wavg.batchnorm.measurement import Measurement, update_bn

__all__ = ["Measurement", "update_bn"]
