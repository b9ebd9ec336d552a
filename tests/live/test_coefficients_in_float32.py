"""Coefficients computed by the backend, compared with those in float64."""

import keras
import numpy
import pytest

from keras_wavg.schedules import (
    BiasCorrected,
    ConstantDecay,
    FromInitial,
    Power,
    Uniform,
    WarmupDecay,
)

DECAYS = [
    kind(decay)
    for kind in (ConstantDecay, WarmupDecay)
    for decay in (0.0, 0.5, 0.999, 0.99999)
]
SCHEDULES = [
    *map(BiasCorrected, DECAYS),
    *map(FromInitial, DECAYS),
    *map(Power, (0.0, 6.94, 16.97)),
    Uniform(),
]


def in_float32(schedule, *times):
    tensors = (
        keras.ops.convert_to_tensor(float(time), "float32") for time in times
    )
    return float(schedule.coefficient(*tensors, keras.ops))


@numpy.errstate(divide="ignore")  # the logarithm of a decay of 0
def test_coefficients_in_float32_equal_those_in_float64():
    for schedule in SCHEDULES:
        for times in ((1, 1), (2, 1), (50, 1), (40, 4), (10**6, 10)):
            expected = float(schedule.coefficient(*map(float, times)))
            received = in_float32(schedule, *times)
            assert received == pytest.approx(expected, rel=1e-6), (
                schedule,
                times,
            )
