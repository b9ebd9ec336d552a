"""`decay_from`: one decay from horizons in different units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_wavg import Profile, decay_from


def test_a_half_life_can_be_in_steps_epochs_or_samples():
    expected = 2 ** (-1 / 100)
    for horizon in (
        {"half_life": 100},
        {"half_life": 2, "unit": "epochs", "steps_per_epoch": 50},
        {"half_life": 3200, "unit": "samples", "batch_size": 32},
        {"half_life": 800, "batch_size_ratio": 8},
    ):
        assert decay_from(**horizon) == pytest.approx(expected, rel=1e-15)


@given(decay=st.floats(0, 0.999_999), ratio=st.floats(0.01, 100))
def test_the_batch_size_ratio_is_an_exponent(decay, ratio):
    assert decay_from(decay=decay, batch_size_ratio=ratio) == decay**ratio


@given(sigma_rel=st.floats(1e-3, 0.288), steps=st.integers(300, 20_000))
def test_an_ema_has_the_requested_sigma_rel(sigma_rel, steps):
    decay = decay_from(sigma_rel=sigma_rel, steps=steps)
    assert Profile.ema(decay, steps).sigma_rel == pytest.approx(
        sigma_rel, rel=1e-6
    )


@pytest.mark.parametrize(
    ("horizon", "message"),
    [
        ({}, "Exactly one of .* Received: none of them"),
        ({"decay": 0.9, "sigma_rel": 0.1}, "Received: decay, sigma_rel"),
        ({"decay": 1}, r"`decay` must be in the range \[0, 1\)"),
        ({"half_life": 0}, "`half_life` must be a positive number"),
        ({"half_life": 1, "unit": "hours"}, "`unit` must be one of"),
        ({"decay": 0.9, "unit": "hours"}, "`unit` must be one of"),
        (
            {"half_life": 2, "steps_per_epoch": 9},
            "does not apply to this unit. .*=9",
        ),
        (
            {"half_life": 2, "unit": "epochs", "batch_size": 8},
            "`batch_size` does not apply to this unit",
        ),
        ({"half_life": 1e17}, r"`decay` must be in the range \[0, 1\)"),
        ({"half_life": 1, "unit": "epochs"}, "`steps_per_epoch` must be"),
        ({"half_life": 1, "unit": "samples"}, "`batch_size` must be"),
        ({"sigma_rel": 0.1}, "`steps` must be an integer >= 2"),
        ({"sigma_rel": 0.29, "steps": 100}, "the plain mean"),
        ({"sigma_rel": 0, "steps": 100}, "`sigma_rel` must be"),
        ({"decay": 0.9, "batch_size_ratio": 0}, "`batch_size_ratio` must be"),
    ],
)
def test_an_invalid_horizon_is_refused(horizon, message):
    with pytest.raises(ValueError, match=message):
        decay_from(**horizon)
