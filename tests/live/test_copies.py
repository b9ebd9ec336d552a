"""Copies of callbacks have their arguments, and the average as arrays."""

import copy
import pickle

import models
import pytest
import reused
from models import equal
from saving import AVERAGES, make

from keras_wavg import EMA, PowerEMA

X, Y = models.data(6)


def fit(model, *callbacks):
    model.fit(X, Y, models.BATCH, verbose=0, callbacks=[*callbacks])


def copies(callback):
    return copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))  # noqa: S301


@pytest.mark.filterwarnings("ignore:.*made no average")
@pytest.mark.parametrize(
    "name", ["default", "power_ema", "lawa", "swag", "fge"]
)
def test_a_copy_averages_a_new_training_like_the_original(name):
    new = make(name)
    for average in copies(new):
        fit(reused.dense(), average)
        expected = average.get_weights()
        for again in copies(average):
            assert equal(again.get_weights(), expected)
            fit(reused.dense(), again)
            assert equal(again.get_weights(), expected)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_copy_of_an_unused_callback_has_no_average(name):
    for average in copies(make(name)):
        assert average.name == name
        with pytest.raises(ValueError, match="needs a model"):
            average.get_weights()


def test_a_copy_does_not_change_the_model_of_the_original():
    model, ema = reused.dense(), EMA(0.9)
    fit(model, ema)
    shown = model.get_weights()
    for again in copies(ema):
        again.restore()
        assert equal(model.get_weights(), shown)
        changed = again.get_weights()
        changed[0][:] = 0
        assert equal(again.get_weights(), ema.get_weights())


def test_a_copy_needs_a_model_to_compute_an_average_of_another_width():
    power = PowerEMA((0.05, 0.1))
    fit(reused.dense(), power)
    for again in copies(power):
        assert equal(again.get_weights(0.05), power.get_weights(0.05))
        with pytest.raises(ValueError, match="needs a model"):
            again.get_weights(0.1)
