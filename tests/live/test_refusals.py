"""Errors of bad arguments and calls: the rule, and what was received."""

import keras
import models
import numpy
import probe
import pytest
from models import BATCH, compiled, data, equal

from keras_wavg import EMA, AverageEvaluator

X, Y = data(3)


def fit(model, *callbacks):
    return model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[*callbacks])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"decay": 1.0},
            r"`decay` must be in the range \[0, 1\). Received: decay=1.0",
        ),
        ({"decay": -0.1}, r"`decay` must .* Received: decay=-0.1"),
        ({"decay": float("nan")}, r"`decay` must .* Received: decay=nan"),
        ({"decay": "0.9"}, r"`decay` must .* Received: decay='0.9'"),
        (
            {"every_steps": 0},
            r"`every_steps` must be an integer >= 1. Received: every_steps=0",
        ),
        (
            {"every_steps": -1},
            r"`every_steps` must be an integer >= 1. Received: every_steps=-1",
        ),
        (
            {"every_steps": 2.5},
            r"`every_steps` must be an integer >= 1. Received: every_steps=2.5",
        ),
        (
            {"start_step": -1},
            r"`start_step` must be an integer >= 0. Received: start_step=-1",
        ),
        (
            {"start_step": "1"},
            r"`start_step` must be an integer >= 0. Received: start_step='1'",
        ),
        ({"include": "("}, r"`include` must be a valid regular expression"),
        ({"include": 3}, r"`include` must be a regular expression, a function"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_with_the_rule_and_what_was_received(
    arguments, message
):
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)


def test_numbers_of_numpy_are_accepted():
    assert EMA(numpy.float32(0.5), every_steps=numpy.int64(3)).every_steps == 3


def test_the_error_for_an_include_without_a_match_names_the_paths():
    ema = EMA(include="no such weight")
    ema.set_model(models.dense())
    with pytest.raises(ValueError, match=r"`include` must match .*kernel"):
        ema.update()


def test_two_averages_with_swap_are_refused_before_training():
    model = compiled(models.dense())
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"At most one average .* `swap=True`"):
        fit(model, EMA(0.9), EMA(0.99))
    assert equal(model.get_weights(), before)


def test_two_averages_with_swap_are_refused_in_evaluate():
    model, first, second = compiled(models.dense()), EMA(0.9), EMA(0.99)
    for average in (first, second):
        average.set_model(model)
        average.update()
    with pytest.raises(ValueError, match="At most one average"):
        model.evaluate(X, Y, verbose=0, callbacks=[first, second])


def test_the_same_average_twice_in_a_list_is_refused():
    ema = EMA(0.9)
    with pytest.raises(ValueError, match="At most one average"):
        fit(compiled(models.dense()), ema, ema)


@pytest.fixture(scope="module")
def model():
    return compiled(models.dense())


def test_a_callback_list_can_be_reused(model):
    ema = EMA(0.9)
    evaluator = AverageEvaluator(X, Y, averages=[ema])
    both = keras.callbacks.CallbackList(
        [ema, evaluator],
        add_history=True,
        model=model,
        epochs=1,
        verbose=0,
        steps=3,
    )
    for _ in range(2):
        model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=both)
    for _ in range(2):
        model.evaluate(X, Y, verbose=0, callbacks=both)
    assert probe.counts(ema).averaged == 6


def test_an_evaluator_works_without_a_callback_list(model):
    ema = EMA(0.9)
    evaluator = AverageEvaluator(X, Y, averages=[ema])
    for callback in (ema, evaluator):
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
    model.train_on_batch(X, Y)
    ema.on_train_batch_end(0)
    logs = {}
    evaluator.on_epoch_end(0, logs)
    assert set(logs) == {"raw_val_loss", "ema_val_loss"}


def test_a_textbook_average_of_an_unbuilt_model_works_or_is_refused():
    model, ema = compiled(models.lazy()), EMA(0.9, bias_correction=False)
    if keras.config.backend() == "tensorflow":
        with pytest.raises(ValueError, match=r"built .* `Input`.*model.build"):
            fit(model, ema)
        model.build((None, 4))
    samples = models.Samples()
    fit(model, samples, ema)
    assert len(samples.weights) == 3


def test_a_textbook_average_needs_the_weights_before_the_first_step():
    model, ema = models.lazy(), EMA(0.9, bias_correction=False)
    ema.set_model(model)
    model.build((None, 4))
    with pytest.raises(ValueError, match="needs a built model"):
        ema.update()


@pytest.mark.parametrize("method", ["update", "apply", "get_weights"])
def test_without_a_model_a_method_says_how_to_set_one(method):
    with pytest.raises(ValueError, match=r"needs a model.*set_model"):
        getattr(EMA(0.9), method)()


def test_get_weights_is_refused_before_the_first_update():
    ema = EMA(0.9, start_step=5)
    ema.set_model(compiled(models.dense()))
    with pytest.raises(ValueError, match=r"no update .* start_step=5"):
        ema.get_weights()


def test_an_update_of_a_model_that_holds_the_average_is_refused():
    model, ema = models.dense(), EMA(0.9)
    ema.set_model(model)
    ema.update()
    ema.apply()
    before = ema.get_weights()
    with pytest.raises(ValueError, match=r"Call `restore\(\)` first"):
        ema.update()
    assert equal(ema.get_weights(), before)
