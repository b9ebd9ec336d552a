"""A profile has the numbers of its formulas, and survives as text."""

import json

import numpy
import pytest

from keras_wavg import Profile
from keras_wavg.profile import exponent_from_sigma_rel, sigma_rel_from_exponent


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_an_ema_has_the_moments_of_its_formulas(decay):
    profile = Profile.ema(decay, steps=20_000)
    assert profile.mean_age == pytest.approx(decay / (1 - decay))
    assert profile.deviation == pytest.approx(decay**0.5 / (1 - decay))
    size = (1 + decay) / (1 - decay)
    assert profile.effective_sample_size == pytest.approx(size)
    half_life = -numpy.log(2) / numpy.log(decay)
    assert profile.half_life == pytest.approx(half_life, abs=0.1)


def test_widths_and_exponents_are_each_other_s_inverse():
    for sigma_rel in numpy.linspace(0.01, 0.28, 28):
        exponent = exponent_from_sigma_rel(sigma_rel)
        back = sigma_rel_from_exponent(exponent)
        assert back == pytest.approx(sigma_rel, rel=0, abs=1e-12)


def test_the_numbers_of_the_paper():
    assert exponent_from_sigma_rel(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent_from_sigma_rel(0.1) == pytest.approx(6.94, abs=5e-3)
    assert exponent_from_sigma_rel(12**-0.5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0, -1, 0.3, "wide", float("nan")])
def test_a_width_that_does_not_exist_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"range \[1e-9, 1 / sqrt\(12\)\]"):
        exponent_from_sigma_rel(sigma_rel)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Profile.ema(1.5, 100), r"`decay` must be .* decay=1.5"),
        (lambda: Profile.ema(0.9, 0), "`steps` must be an integer >= 1"),
        (lambda: Profile.power(0.1, 0), "`steps` must be an integer >= 1"),
        (lambda: Profile.mean([], 3), "at least one sample"),
    ],
    ids=["decay", "ema", "power", "mean"],
)
def test_a_profile_that_does_not_exist_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_very_long_run_has_the_profile_of_its_formulas():
    ema, power = Profile.ema(0.9999, 10**9), Profile.power(0.1, 10**9)
    assert ema.mean_age == pytest.approx(9999, rel=1e-3)
    assert ema.deviation == pytest.approx(9999.5, rel=1e-3)
    assert power.sigma_rel == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 10, 100_000])
def test_a_profile_survives_as_text(steps):
    for profile in (Profile.ema(0.99, steps), Profile.power(0.1, steps)):
        text = profile.to_json()
        assert len(text) < 250_000
        back = Profile.from_json(text)
        assert back.exponent == profile.exponent
        assert back.begun_at_first == profile.begun_at_first
        assert back.mean_age == pytest.approx(profile.mean_age, rel=2e-2)
        assert back.deviation == pytest.approx(profile.deviation, rel=2e-2)


def text(**changed):
    """A profile as text, with a fault."""
    return json.dumps(json.loads(Profile.ema(0.9, 1).to_json()) | changed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        text(times=[1], shares=[2]),
        text(times=[2, 1], shares=[0, 1]),
        text(times=[1], shares=[1], exponent=-1),
        text(times=[1], shares=["one"]),
        text(times=[2]),
        text(times=[-1]),
        text(times=[float("nan")]),
        text(steps=1e400),
        text(steps=2**70),
        text(steps=None),
        text(begun_at_first=None, exponent="wide"),
        "[" * 100_000,
    ],
)
def test_a_text_that_is_no_profile_is_refused(text):
    with pytest.raises(ValueError, match="A profile must"):
        Profile.from_json(text)
