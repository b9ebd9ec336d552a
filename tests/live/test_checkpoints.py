"""The weights that are measured are saved, in any order of callbacks."""

import keras
import models
import pytest
import reused
from models import BATCH, data

from keras_wavg import BEMA, EMA, LAWA, SWA, SWAG, Lookahead

X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
AVERAGES = {
    "EMA": lambda: EMA(0.8),
    "SWA": lambda: SWA(2, batch_norm_data=X),
    "LAWA": lambda: LAWA(2),
    "SWAG": lambda: SWAG(every_steps=4, batch_norm_data=X),
    "BEMA": lambda: BEMA(4),
    "Lookahead": lambda: Lookahead(4),
}


@models.seeded
def overfitting():
    """A model whose best epoch is not its last."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )


def adam():
    return keras.optimizers.Adam(0.03)


model_that_overfits = reused.Reused(overfitting, adam)
another_model = reused.Reused(overfitting, adam)


def fit(model, *callbacks, epochs=6, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def score(model):
    return model.evaluate(X_VAL, Y_VAL, verbose=0)


def score_of(path):
    model = another_model()
    model.load_weights(path)
    return score(model)


@pytest.mark.parametrize(
    ("average", "position"),
    [
        ("EMA", 1),
        ("EMA", 2),
        ("SWA", 0),
        ("LAWA", 3),
        ("SWAG", 0),
        ("BEMA", 3),
        ("Lookahead", 1),
    ],
)
def test_the_logged_metric_the_files_and_the_restored_model_agree(
    average, position, tmp_path
):
    """With a checkpoint before the average and one after it."""
    files = ["a.keras", "b.weights.h5"][:: -1 if position % 2 else 1]
    first, last = (
        keras.callbacks.ModelCheckpoint(
            tmp_path / file,
            save_best_only=True,
            save_weights_only=file.endswith("h5"),
        )
        for file in files
    )
    callbacks = [first, AVERAGES[average](), last]
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    callbacks.insert(position, stop)
    model, validation = model_that_overfits(), (X_VAL, Y_VAL)
    fitted = fit(model, *callbacks, epochs=8, validation_data=validation)
    history = fitted.history["val_loss"]
    best = min(history)
    if average == "EMA":  # The mean of all epochs may be best at the end.
        assert history.index(best) < len(history) - 1
    assert score(model) == pytest.approx(best, rel=1e-6)
    for file in files:
        assert score_of(tmp_path / file) == pytest.approx(best, rel=1e-6)


def test_without_validation_files_contain_the_average_in_any_order(tmp_path):
    paths = [tmp_path / "first.weights.h5", tmp_path / "last.weights.h5"]
    first, last = (
        keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
        for path in paths
    )
    ema = EMA(0.8)
    fit(model_that_overfits(), first, ema, last, epochs=3)
    for path in paths:
        saved = another_model()
        saved.load_weights(path)
        assert models.equal(saved.get_weights(), ema.get_weights())


def test_csv_logger_logs_the_score_of_the_file(tmp_path):
    """With both callbacks before the average and after it."""

    def both(name):
        return (
            keras.callbacks.ModelCheckpoint(
                tmp_path / f"{name}.weights.h5", save_weights_only=True
            ),
            keras.callbacks.CSVLogger(tmp_path / f"{name}.csv"),
        )

    callbacks = [*both("first"), EMA(0.8), *both("last")]
    model, validation = model_that_overfits(), (X_VAL, Y_VAL)
    fit(model, *callbacks, epochs=2, validation_data=validation)
    for name in ("first", "last"):
        log = (tmp_path / f"{name}.csv").read_text()
        logged = float(log.split()[-1].split(",")[-1])
        received = score_of(tmp_path / f"{name}.weights.h5")
        assert received == pytest.approx(logged, rel=1e-6)


def test_fit_continues_from_restored_best_weights():
    model, ema = model_that_overfits(), EMA(0.8)
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    fit(model, ema, stop, epochs=8, validation_data=(X_VAL, Y_VAL))
    best = model.get_weights()
    samples = models.Samples()
    with pytest.warns(match="were replaced while they held the average"):
        fit(model, samples, ema, epochs=1)
    assert models.equal(samples.initial, best)
