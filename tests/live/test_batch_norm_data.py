"""`batch_norm_data`: statistics that are measured for an average."""

import copy

import keras
import models
import numpy
import pytest
import reference
import reused
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import BEMA, EMA, Lookahead, PowerEMA, SwitchEMA, update_bn

X, Y = data(6)
VALIDATION = data(2, seed=1)
AVERAGES = {
    "ema": (EMA, {"decay": 0.9}),
    "textbook": (EMA, {"decay": 0.9, "bias_correction": False}),
    "on_host": (EMA, {"decay": 0.9, "device": "cpu"}),
    "switch_ema": (SwitchEMA, {"decay": 0.9}),
    "power_ema": (PowerEMA, {}),
    "bema": (BEMA, {"every_steps": 3}),
    "lookahead": (Lookahead, {}),
}


def make(name, **options):
    average, arguments = AVERAGES[name]
    return average(**arguments, **options, name=name)


def fit(model, *callbacks, epochs=3, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def remeasured(weights, x=X):
    """Weights with the statistics that `update_bn` measures for them."""
    model = models.batch_norm()
    model.set_weights(weights)
    update_bn(model, x, batch_size=BATCH, verbose=0)
    return model.get_weights()


def near(received, expected, limit=1e-5):
    return reference.relative_error(received, expected) < limit


def train(average):
    """Fit a new model. Returns averaged and raw weights, and the scores."""
    model = reused.batch_norm()
    history = fit(model, average, validation_data=VALIDATION).history
    shown, averaged = model.get_weights(), average.get_weights()
    assert equal(shown, averaged)
    score = model.evaluate(*VALIDATION, batch_size=BATCH, verbose=0)
    average.restore()
    return averaged, model.get_weights(), (history["val_loss"][-1], score)


@pytest.mark.parametrize("name", AVERAGES)
def test_statistics_are_measured_and_other_weights_averaged_as_without(name):
    plain, raw, _ = train(make(name))
    averaged, same_raw, scores = train(make(name, batch_norm_data=X))
    assert near(averaged, remeasured(plain))
    assert not near(averaged, plain)
    assert equal(raw, same_raw)
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_statistics_are_measured_for_each_width_of_power_ema(tmp_path):
    model, path = reused.batch_norm(), tmp_path / "wide.weights.h5"
    plain = PowerEMA((0.05, 0.1), swap=False, name="plain")
    power = PowerEMA((0.05, 0.1), batch_norm_data=X)
    fit(model, plain, power)
    power.restore()
    raw = model.get_weights()
    wide = power.get_weights(0.1)
    assert near(wide, remeasured(plain.get_weights(0.1)))
    assert not near(wide, plain.get_weights(0.1))
    with power.applied(0.1):
        assert equal(model.get_weights(), wide)
    assert equal(model.get_weights(), raw)
    power.save_weights(path, 0.1)
    other = models.batch_norm()
    other.load_weights(path)
    assert equal(other.get_weights(), wide)


class Endless(keras.utils.PyDataset):
    """Batches without end."""

    num_batches = None

    def __getitem__(self, index):
        start = index * BATCH % len(X)
        return X[start : start + BATCH]


@pytest.mark.parametrize("steps", [2, 5])
def test_batch_norm_steps_limits_endless_data(steps):
    model, samples = reused.batch_norm(), Samples()
    ema = EMA(0.9, batch_norm_data=Endless(), batch_norm_steps=steps)
    fit(model, ema, samples)
    received = ema.get_weights()
    assert near(received, remeasured(received, X[: steps * BATCH]))
    assert not near(received, remeasured(received))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm_steps": 3}, "requires `batch_norm_data`"),
        (
            {"batch_norm_data": X, "batch_norm_steps": 0},
            "`batch_norm_steps` must be an integer >= 1",
        ),
    ],
)
def test_bad_batch_norm_steps_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EMA(**options)


def test_a_model_without_batch_normalization_is_refused_when_fit_starts():
    model = reused.dense()
    with pytest.raises(ValueError, match="must have a trainable"):
        fit(model, EMA(batch_norm_data=X))


def test_a_used_callback_can_be_copied():
    model, ema = reused.batch_norm(), EMA(0.9, batch_norm_data=X)
    fit(model, ema)
    copied = copy.deepcopy(ema)
    assert equal(copied.get_weights(), ema.get_weights())
    fit(compiled(models.batch_norm()), copied)
    assert numpy.isfinite(copied.get_weights()[0]).all()
