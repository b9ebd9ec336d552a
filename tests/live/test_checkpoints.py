"""What was measured is what is saved, in any order of the callbacks."""

import itertools

import keras
import models
import pytest
from models import BATCH, compiled, data

from keras_wavg import BEMA, EMA, LAWA, SWA, SWAG, Lookahead

ORDERS = list(itertools.permutations(range(3)))
X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
AVERAGES = {
    "EMA": lambda: EMA(0.8),
    "SWA": lambda: SWA(2, bn_data=X),
    "LAWA": lambda: LAWA(2),
    "SWAG": lambda: SWAG(every_steps=4, bn_data=X),
    "BEMA": lambda: BEMA(4),
    "Lookahead": lambda: Lookahead(4),
}


def fit(model, *callbacks, epochs=6, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def score(model):
    return model.evaluate(X_VAL, Y_VAL, verbose=0)


def model_that_overfits():
    """Its best epoch is not the last, so that "best" means something."""
    return compiled(models.batch_norm(), keras.optimizers.Adam(0.03))


@pytest.mark.parametrize(
    ("average", "order"),
    [
        *(("EMA", order) for order in ORDERS),
        *zip(list(AVERAGES)[1:], ORDERS, strict=False),
    ],
    ids=str,
)
def test_logged_metric_file_and_restored_model_are_the_same_weights(
    average, order, tmp_path
):
    weights_only = (
        order[0] < order[1]
    )  # each kind of file, each in three orders
    path = tmp_path / ("best.weights.h5" if weights_only else "best.keras")
    callbacks = [
        AVERAGES[average](),
        keras.callbacks.ModelCheckpoint(
            path, save_best_only=True, save_weights_only=weights_only
        ),
        keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
    ]
    model = model_that_overfits()
    history = fit(
        model,
        *(callbacks[i] for i in order),
        epochs=12,
        validation_data=(X_VAL, Y_VAL),
    ).history["val_loss"]
    best = min(history)
    if average == "EMA":  # The mean of all epochs may be best at the end.
        assert history.index(best) < len(history) - 1
    saved = model_that_overfits()
    saved.load_weights(path)
    assert score(saved) == pytest.approx(best, rel=1e-6)
    assert score(model) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_without_validation_the_file_has_the_average_in_any_order(
    order, tmp_path
):
    path = str(tmp_path / "{epoch}.weights.h5")
    ema = EMA(0.8)
    callbacks = [
        ema,
        keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
    ]
    model = model_that_overfits()
    fit(model, *callbacks[::order], epochs=3)
    saved = model_that_overfits()
    saved.load_weights(tmp_path / "3.weights.h5")
    averaged = model_that_overfits()
    averaged.set_weights(ema.get_weights())
    assert models.equal(saved.get_weights(), averaged.get_weights())


@pytest.mark.parametrize("order", [1, -1])
def test_csv_logger_logs_the_score_of_the_file(order, tmp_path):
    callbacks = [
        EMA(0.8),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "last.weights.h5", save_weights_only=True
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    model = model_that_overfits()
    fit(model, *callbacks[::order], epochs=2, validation_data=(X_VAL, Y_VAL))
    logged = (tmp_path / "log.csv").read_text().split()[-1].split(",")[-1]
    saved = model_that_overfits()
    saved.load_weights(tmp_path / "last.weights.h5")
    assert score(saved) == pytest.approx(float(logged), rel=1e-6)


def test_a_fit_after_restored_best_weights_trains_on_from_those():
    model, ema = model_that_overfits(), EMA(0.8)
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    fit(model, ema, stop, epochs=12, validation_data=(X_VAL, Y_VAL))
    best = model.get_weights()
    samples = models.Samples()
    fit(model, samples, ema, epochs=1)
    assert models.equal(samples.initial, best)
