"""Coefficients are those of the papers, and sum to one."""

import numpy
import pytest
import reference

from keras_wavg import coefficients

ALL = {
    "uniform": coefficients.uniform,
    "ascending": coefficients.ascending,
    "ema": lambda count: coefficients.ema(count, 0.9),
    "linear": coefficients.decay_emulation,
    "cosine": lambda count: coefficients.decay_emulation(count, "cosine"),
    "1-sqrt": lambda count: coefficients.decay_emulation(count, "1-sqrt"),
}


@pytest.mark.parametrize("name", ALL)
def test_coefficients_are_not_negative_and_sum_to_one(name):
    for count in range(1, 201):
        found = ALL[name](count)
        assert len(found) == count
        assert min(found) >= 0
        assert sum(found) == pytest.approx(1, abs=1e-12)


def test_coefficients_equal_those_of_the_wsm_paper():
    cosine = coefficients.decay_emulation(5, "cosine")
    assert cosine == pytest.approx([0.096, 0.25, 0.309, 0.25, 0.096], abs=1e-3)
    root = coefficients.decay_emulation(5, "1-sqrt")
    assert root == pytest.approx([0.447, 0.185, 0.142, 0.12, 0.106], abs=1e-3)
    linear = coefficients.decay_emulation(5, "linear")
    assert linear == pytest.approx(coefficients.uniform(5))


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_merging_equals_a_decay_with_the_same_gradients(shape):
    steps = numpy.random.default_rng(0).normal(size=4)
    rates = {
        "linear": lambda t: 1 - t,
        "cosine": lambda t: (1 + numpy.cos(numpy.pi * t)) / 2,
        "1-sqrt": lambda t: 1 - t**0.5,
    }
    decayed = sum(rates[shape](k / 5) * s for k, s in enumerate(steps, 1))
    checkpoints = numpy.concatenate([[0], numpy.cumsum(steps)])
    merged = coefficients.decay_emulation(5, shape) @ checkpoints
    assert merged == pytest.approx(decayed, abs=1e-12)


def test_ema_equals_that_of_the_callback():
    rng = numpy.random.default_rng(0)
    samples = [[rng.normal(size=3)] for _ in range(6)]
    (expected,) = reference.ema(samples, 0.8)
    got = coefficients.ema(6, 0.8) @ numpy.stack([s[0] for s in samples])
    numpy.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coefficients.uniform(0), "`count` must be an integer >= 1"),
        (lambda: coefficients.ema(3, 1.5), "`decay` must be in the range"),
        (lambda: coefficients.decay_emulation(3, "x"), "`shape` must be one"),
    ],
)
def test_an_invalid_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
