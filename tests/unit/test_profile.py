"""Profiles: their figures, against formulas, and their JSON."""

import json

import numpy
import pytest

from keras_wavg import Profile
from keras_wavg.profile import exponent_from_sigma_rel, sigma_rel_from_exponent


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_figures_of_an_ema_follow_its_formulas(decay):
    profile = Profile.ema(decay, steps=20_000)
    assert profile.mean_age == pytest.approx(decay / (1 - decay))
    assert profile.std_age == pytest.approx(decay**0.5 / (1 - decay))
    size = (1 + decay) / (1 - decay)
    assert profile.effective_sample_size == pytest.approx(size)
    half_life = -numpy.log(2) / numpy.log(decay)
    assert profile.half_life == pytest.approx(half_life, abs=0.1)


def test_conversions_of_sigma_rel_and_exponent_are_inverse():
    for sigma_rel in numpy.linspace(0.01, 0.28, 28):
        exponent = exponent_from_sigma_rel(sigma_rel)
        converted = sigma_rel_from_exponent(exponent)
        assert converted == pytest.approx(sigma_rel, rel=0, abs=1e-12)


def test_exponents_equal_those_of_the_paper():
    assert exponent_from_sigma_rel(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent_from_sigma_rel(0.1) == pytest.approx(6.94, abs=5e-3)
    assert exponent_from_sigma_rel(12**-0.5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0, -1, 0.3, "wide", float("nan")])
def test_invalid_sigma_rel_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"range \[1e-9, 1 / sqrt\(12\)\]"):
        exponent_from_sigma_rel(sigma_rel)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Profile.ema(1.5, 100), r"`decay` must be .* decay=1.5"),
        (lambda: Profile.ema(0.9, 0), "`steps` must be an integer >= 1"),
        (lambda: Profile.power(0.1, 0), "`steps` must be an integer >= 1"),
        (lambda: Profile.mean([], 3), r"at least one sample.* times=\[\]"),
    ],
    ids=["decay", "ema", "power", "mean"],
)
def test_invalid_arguments_are_refused(create, message):
    with pytest.raises(ValueError, match=message):
        create()


def test_a_very_long_training_follows_the_formulas():
    ema, power = Profile.ema(0.9999, 10**9), Profile.power(0.1, 10**9)
    assert ema.mean_age == pytest.approx(9999, rel=1e-3)
    assert ema.std_age == pytest.approx(9999.5, rel=1e-3)
    assert power.sigma_rel == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("profile", "start"),
    [
        (Profile.ema(0.99, 1000), "Profile(samples=1000, last=1000, steps="),
        (Profile.power(0.1, 10**6), "Profile(power function, exponent=6.937, "),
        (Profile.mean([50, 100], 120), "Profile(mean, samples=2, last=100, "),
    ],
    ids=["ema", "power", "mean"],
)
def test_repr_is_one_line_of_figures(profile, start):
    text = repr(profile)
    assert text.startswith(start)
    assert f"mean_age={profile.mean_age:.4g}" in text
    assert f"sigma_rel={profile.sigma_rel:.4g}" in text
    assert text.endswith("initial=0.00%)")
    assert len(text) < 250
    assert "\n" not in text


@pytest.mark.parametrize("steps", [1, 10, 100_000])
def test_json_preserves_a_profile(steps):
    for profile in (Profile.ema(0.99, steps), Profile.power(0.1, steps)):
        text = profile.to_json()
        assert len(text) < 250_000
        loaded = Profile.from_json(text)
        assert loaded.exponent == profile.exponent
        assert loaded.starts_from_initial == profile.starts_from_initial
        assert loaded.mean_age == pytest.approx(profile.mean_age, rel=2e-2)
        assert loaded.std_age == pytest.approx(profile.std_age, rel=2e-2)


def json_with(**changes):
    """JSON of a profile with an invalid field."""
    return json.dumps(json.loads(Profile.ema(0.9, 1).to_json()) | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json_with(times=[1], shares=[2]),
        json_with(times=[2, 1], shares=[0, 1]),
        json_with(times=[1], shares=[1], exponent=-1),
        json_with(times=[1], shares=["one"]),
        json_with(times=[2]),
        json_with(times=[-1]),
        json_with(times=[float("nan")]),
        json_with(steps=1e400),
        json_with(steps=2**70),
        json_with(steps=None),
        json_with(begun_at_first=None, exponent="wide"),
        "[" * 100_000,
    ],
)
def test_invalid_json_is_refused(text):
    with pytest.raises(ValueError, match="A profile must"):
        Profile.from_json(text)
