"""One short training, and what other tools must log and save of it."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import keras
import models
import numpy
import pytest
import reference
import reused
from keras.wrappers import SKLearnRegressor
from models import BATCH, Samples, data, equal, fit_and_validate
from sklearn.model_selection import KFold, cross_val_score

from keras_wavg import EMA, resume

DECAY = 0.8
EPOCHS = 2
STEPS = 6  # batches of an epoch of `fit_and_validate`

OPTIONS = {
    "batch_size": BATCH,
    "epochs": EPOCHS,
    "shuffle": False,
    "verbose": 0,
}

X_VAL, Y_VAL = data(2, seed=1)
RATE = 0.3  # so high that the average is far from the raw weights
sgd = functools.partial(keras.optimizers.SGD, RATE)
trained_model = reused.Reused(models.dense, sgd)
another_model = reused.Reused(models.dense, sgd)

in_any_order = pytest.mark.parametrize(
    "order", [1, -1], ids=["tool_first", "average_first"]
)


class Epochs(NamedTuple):
    """The numbers of each epoch.

    Args:
        loss: List of training losses.
        val_loss: List of validation losses of the average.
        raw_val_loss: List of validation losses of the raw weights.
        average: List of averaged weights.
        raw: List of raw weights.
    """

    loss: list[float]
    val_loss: list[float]
    raw_val_loss: list[float]
    average: list[list[numpy.ndarray]]
    raw: list[list[numpy.ndarray]]


@functools.cache
def expected(rate: float = RATE) -> Epochs:
    """A training without an average, and its averages by their definition."""
    model, samples = another_model(), Samples()
    model.optimizer.learning_rate = rate
    fit_and_validate(model, samples, epochs=EPOCHS)
    history = model.history.history
    ends = range(STEPS, EPOCHS * STEPS + 1, STEPS)
    average = [reference.ema(samples.weights[:n], DECAY) for n in ends]
    scores = [score_of(weights) for weights in average]
    # Otherwise no test could tell them apart.
    assert scores != pytest.approx(history["val_loss"], rel=1e-2)
    raw = [samples.weights[n - 1] for n in ends]
    return Epochs(history["loss"], scores, history["val_loss"], average, raw)


def score_of(weights: list[numpy.ndarray]) -> float:
    """The validation loss of weights."""
    model = another_model()
    model.set_weights(weights)
    return score(model)


def score(model: keras.Model) -> float:
    """The validation loss of a model."""
    return model.evaluate(X_VAL, Y_VAL, batch_size=BATCH, verbose=0)


def train_with(tool: keras.callbacks.Callback, order: int = 1) -> EMA:
    """Train with an average, which stands behind the tool or before it."""
    ema = EMA(DECAY)
    callbacks = [tool, ema][::order]
    fit_and_validate(trained_model(), *callbacks, epochs=EPOCHS)
    return ema


def close(values: Any) -> Any:
    """Equal, except for rounding."""
    return pytest.approx(values, rel=1e-5)


def assert_has_both(
    file: Path, epoch: int = -1, wanted: Epochs | None = None
) -> None:
    """A plain model loads the average, and `resume` also the raw weights."""
    wanted = wanted or expected()
    model, ema = another_model(), EMA(DECAY)
    model.load_weights(file)
    assert_are_close(model.get_weights(), wanted.average[epoch])
    resume(another_model(), file, [ema])
    ema.restore()
    assert equal(model.get_weights(), wanted.raw[epoch])


def assert_are_close(
    weights: list[numpy.ndarray], wanted: list[numpy.ndarray]
) -> None:
    """Compare weights, except for rounding."""
    assert reference.relative_error(weights, wanted) < 1e-6


def network(X: Any, y: Any) -> keras.Model:  # noqa: N803
    """Build a model for scikit-learn, whose processes import this module."""
    return models.compiled(models.dense(), sgd())


def assert_cross_validates_the_average(n_jobs: int) -> None:
    """Compare the scores of `cross_val_score` with those of averages."""
    x, y = data(6)
    folds = KFold(2)
    scores = cross_val_score(
        SKLearnRegressor(network),
        x,
        y[:, 0],
        cv=folds,
        scoring="neg_mean_squared_error",
        n_jobs=n_jobs,
        params={"callbacks": [EMA(DECAY)], **OPTIONS},
    )
    wanted = [score_of_fold(x, y, *fold) for fold in folds.split(x)]
    assert scores == close(wanted)


def score_of_fold(x: Any, y: Any, train: Any, test: Any) -> float:
    """The score of the average of a training, by definition."""
    model, samples = another_model(), Samples()
    model.fit(x[train], y[train], callbacks=[samples], **OPTIONS)
    model.set_weights(reference.ema(samples.weights, DECAY))
    return -model.evaluate(x[test], y[test], verbose=0)
