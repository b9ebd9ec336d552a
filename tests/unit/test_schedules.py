"""The coefficients of schedules, against explicit products and sums."""

import numpy
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from keras_wavg.schedules import (
    BiasCorrected,
    ConstantDecay,
    FromInitial,
    WarmupDecay,
    decay_from_half_life,
)

DECAYS = st.floats(0, 0.99999)


def average_of(schedule, samples, every, initial=0.0):
    """Average numbers with the update rule."""
    average = initial
    for steps in range(every, len(samples) + 1, every):
        coefficient = schedule.coefficient(float(steps), float(every))
        average += coefficient * (samples[steps - 1] - average)
    return average


@given(decay=DECAYS, every=st.integers(1, 7), warmup=st.booleans())
def test_updates_equal_the_average_of_the_definition(decay, every, warmup):
    samples = numpy.random.default_rng(0).normal(size=30)
    arrays = [[numpy.array([s])] for s in samples]
    decays = WarmupDecay(decay) if warmup else ConstantDecay(decay)
    for schedule, initial in (
        (BiasCorrected(decays), None),
        (FromInitial(decays), 3.0),
    ):
        expected = reference.ema(
            arrays,
            decay,
            initial=None if initial is None else [numpy.array([initial])],
            every=every,
            warmup=warmup,
        )
        average = average_of(schedule, samples, every, initial or 0.0)
        assert average == pytest.approx(expected[0][0], rel=1e-9, abs=1e-12)


@given(decay=DECAYS, every=st.integers(1, 1000), warmup=st.booleans())
def test_the_first_bias_corrected_sample_is_the_average(decay, every, warmup):
    decays = WarmupDecay(decay) if warmup else ConstantDecay(decay)
    assert BiasCorrected(decays).coefficient(every, every) == 1


@given(
    decay=DECAYS,
    start=st.integers(0, 10**6),
    first=st.integers(1, 500),
    second=st.integers(1, 500),
)
def test_a_long_interval_decays_as_two_short_ones(decay, start, first, second):
    for decays in (ConstantDecay(decay), WarmupDecay(decay)):
        middle, end = start + first, start + first + second
        in_two = decays.log_decay(middle, first) + decays.log_decay(end, second)
        in_one = decays.log_decay(end, first + second)
        assert numpy.exp(in_one) == pytest.approx(numpy.exp(in_two), abs=1e-12)


@pytest.mark.parametrize("steps", [2**24 + 3, 2**25 + 10, 10**8])
@pytest.mark.parametrize("kind", [BiasCorrected, FromInitial])
def test_float32_coefficients_are_exact_after_many_steps(kind, steps):
    schedule = kind(WarmupDecay(0.9))
    coefficient = schedule.coefficient(numpy.float32(steps), numpy.float32(1))
    assert coefficient == pytest.approx(0.1, rel=1e-6)


def test_warmup_ends_at_the_step_of_the_formula():
    for decay, steps in ((0.99, 890), (0.999, 8990), (0.9999, 89990)):
        assert WarmupDecay(decay).warmup_steps == pytest.approx(steps, abs=1)


def test_coefficient_without_bias_correction_is_one_minus_decay():
    schedule = FromInitial(ConstantDecay(0.999))
    assert schedule.coefficient(7, 1) == pytest.approx(0.001, rel=1e-12)
    assert schedule.coefficient(8, 4) == pytest.approx(1 - 0.999**4, rel=1e-12)


def test_decay_is_one_half_after_a_half_life():
    assert decay_from_half_life(100) ** 100 == pytest.approx(0.5)
