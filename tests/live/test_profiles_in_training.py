"""Averages in training have the profiles and horizons that are computed."""

from typing import NamedTuple

import keras
import numpy
import pytest
from models import clock

from keras_wavg import EMA, LAWA, SWA, PowerEMA, Profile, decay_from

EPOCHS = 5
STEPS = 520
EPOCH = STEPS // EPOCHS
LATE = STEPS - 170

# 7 does not divide the number of steps, nor 10 that of an epoch.
AVERAGES = {
    "power": lambda **o: PowerEMA(0.1, **o),
    "power_7": lambda **o: PowerEMA(0.1, every_steps=7, **o),
    "power_10": lambda **o: PowerEMA(0.1, every_steps=10, **o),
    "power_26": lambda **o: PowerEMA(0.1, every_steps=26, **o),
    "wide": lambda **o: PowerEMA(0.25, **o),
    "ema": lambda **o: EMA(0.99, **o),
    "ema_10": lambda **o: EMA(0.99, every_steps=10, **o),
    "ema_start": lambda **o: EMA(0.996, start_step=80, **o),
    "textbook": lambda **o: EMA(0.996, bias_correction=False, **o),
    "late": lambda **o: EMA(0.996, bias_correction=False, start_step=LATE, **o),
    "warmup": lambda **o: EMA(0.996, warmup=True, **o),
    "swa_steps": lambda **o: SWA(every_steps=15, **o),
    "lawa_steps": lambda **o: LAWA(5, every_steps=15, **o),
    "swa": lambda **o: SWA(start_epoch=2, **o),
    "lawa": lambda **o: LAWA(2, **o),
}


class Measured(NamedTuple):
    """Mean and standard deviation of the age, computed from the weights.

    Args:
        profile: The result of `profile()`, to compare with.
        mean_age: Float, in steps.
        std_age: Float, in steps.
    """

    profile: Profile
    mean_age: float
    std_age: float


def fit(averages, steps, epochs=1):
    """Train a model whose weights are the step and its square."""
    x = numpy.zeros((steps // epochs, 1), "float32")
    clock(steps).fit(
        x, batch_size=1, epochs=epochs, verbose=0, callbacks=averages
    )


def measured(average):
    time, square = (float(w) for w in average.get_weights())
    width = numpy.sqrt(square - time**2)
    return Measured(average.profile(), STEPS * (1 - time), STEPS * width)


@pytest.fixture(scope="module")
def training():
    """Measure all averages, by name, after one training."""
    keras.config.set_dtype_policy("float32")
    averages = [make(swap=False, name=name) for name, make in AVERAGES.items()]
    with pytest.warns(match="weights from before training"):
        fit(averages, STEPS, EPOCHS)
    return {average.name: measured(average) for average in averages}


def test_profiles_are_those_of_the_weights(training):
    for name, (profile, mean_age, std_age) in training.items():
        assert profile.steps == STEPS, name
        assert profile.coefficients.sum() == pytest.approx(1), name
        assert profile.mean_age == pytest.approx(mean_age, abs=1e-3 * STEPS), (
            name
        )
        assert profile.std_age == pytest.approx(std_age, abs=1e-3 * STEPS), name
        if "power" in name:
            assert profile.sigma_rel == pytest.approx(0.1, abs=1e-3), name


def test_samples_of_epochs_have_times_in_steps(training):
    expected = {"swa": [3, 4, 5], "lawa": [4, 5]}
    for name, epochs in expected.items():
        times = training[name].profile.times.tolist()
        assert times == [epoch * EPOCH for epoch in epochs]


def test_a_textbook_average_has_its_initial_coefficient(training):
    steps = {"textbook": STEPS, "late": STEPS - LATE}
    for name, since in steps.items():
        coefficient = training[name].profile.initial_coefficient
        assert coefficient == pytest.approx(0.996**since)


def test_batch_size_ratio_preserves_the_number_of_samples(training):
    steps = STEPS // 4
    scaled = EMA(decay_from(decay=0.99, batch_size_ratio=4), swap=False)
    same = EMA(0.99, swap=False, name="same")
    fit([scaled, same], steps)
    small = 1 - training["ema"].mean_age / STEPS
    large, unchanged = (float(a.get_weights()[0]) for a in (scaled, same))
    assert large == pytest.approx(small, abs=5e-3)
    assert unchanged < small - 0.1
