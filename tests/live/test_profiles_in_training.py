"""Training makes the averages that profiles and horizons tell of."""

from typing import NamedTuple

import keras
import numpy
import pytest
from models import clock

from keras_wavg import EMA, LAWA, SWA, PowerEMA, decay_from

EPOCHS = 5
STEPS = 520
EPOCH = STEPS // EPOCHS
LATE = STEPS - 170

# Seven does not divide the steps, nor ten an epoch.
AVERAGES = {
    "power": lambda **o: PowerEMA(0.1, **o),
    "power_7": lambda **o: PowerEMA(0.1, every=7, **o),
    "power_10": lambda **o: PowerEMA(0.1, every=10, **o),
    "power_26": lambda **o: PowerEMA(0.1, every=26, **o),
    "wide": lambda **o: PowerEMA(0.25, **o),
    "ema": lambda **o: EMA(0.99, **o),
    "ema_10": lambda **o: EMA(0.99, every=10, **o),
    "ema_start": lambda **o: EMA(0.996, start=80, **o),
    "textbook": lambda **o: EMA(0.996, bias_correction=False, **o),
    "late": lambda **o: EMA(0.996, bias_correction=False, start=LATE, **o),
    "warm_up": lambda **o: EMA(0.996, warmup=True, **o),
    "swa_steps": lambda **o: SWA(every_steps=15, **o),
    "lawa_steps": lambda **o: LAWA(5, every_steps=15, **o),
    "swa": lambda **o: SWA(start_epoch=2, **o),
    "lawa": lambda **o: LAWA(2, **o),
}


class Measured(NamedTuple):
    """What an average is made of, by its profile and by its weights.

    Args:
        profile: As `profile()` tells it.
        age: Mean age in steps, as the weights have it.
        deviation: That of the age.
    """

    profile: object
    age: float
    deviation: float


def fit(averages, steps, epochs=1):
    """Train a model whose weights tell the time."""
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
    """All averages, by name, after one training."""
    keras.config.set_dtype_policy("float32")
    averages = [make(swap=False, name=name) for name, make in AVERAGES.items()]
    with pytest.warns(match="weights from before training"):
        fit(averages, STEPS, EPOCHS)
    return {average.name: measured(average) for average in averages}


def test_training_realizes_the_profile(training):
    for name, (profile, age, deviation) in training.items():
        assert profile.steps == STEPS, name
        assert profile.shares.sum() == pytest.approx(1), name
        assert profile.mean_age == pytest.approx(age, abs=1e-3 * STEPS), name
        assert profile.deviation == pytest.approx(
            deviation, abs=1e-3 * STEPS
        ), name
        if "power" in name:
            assert profile.sigma_rel == pytest.approx(0.1, abs=1e-3), name


def test_epochs_are_told_in_steps(training):
    expected = {"swa": [3, 4, 5], "lawa": [4, 5]}
    for name, epochs in expected.items():
        times = training[name].profile.times.tolist()
        assert times == [epoch * EPOCH for epoch in epochs]


def test_a_textbook_average_knows_its_initial_weights(training):
    steps = {"textbook": STEPS, "late": STEPS - LATE}
    for name, since in steps.items():
        share = training[name].profile.initial_share
        assert share == pytest.approx(0.996**since)


def test_a_training_with_larger_batches_averages_as_many_samples(training):
    steps = STEPS // 4
    ruled = EMA(decay_from(decay=0.99, batch_size_ratio=4), swap=False)
    same = EMA(0.99, swap=False, name="same")
    fit([ruled, same], steps)
    small = 1 - training["ema"].age / STEPS
    large, unchanged = (float(a.get_weights()[0]) for a in (ruled, same))
    assert large == pytest.approx(small, abs=5e-3)
    assert unchanged < small - 0.1
