"""Checks of the average of Keras: `use_ema=True` and `SwapEMAWeights`."""

import itertools
import tempfile
from pathlib import Path

import keras
import models
import numpy
from keras.callbacks import SwapEMAWeights
from models import compiled
from parity_fit import (
    after_an_exception,
    change_by,
    fit,
    flat,
    score_after_early_stop,
    score_of_best_file,
    small,
    updates_in_fit,
    vector,
)
from parity_library import DECAY, Library, change, faint, walk


class Keras(Library):
    """`use_ema=True` of an optimizer, with `SwapEMAWeights`."""

    starts = "at the first step"

    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        model = trained_on(samples, decay, dtype)
        return flat(averages(model)).astype("float64")

    def raw_weights_after_evaluate(self):
        model, x = trained_on(faint()), numpy.ones((4, 3))
        options = {"verbose": 0, "callbacks": [SwapEMAWeights()]}
        return change_by(model, lambda: model.evaluate(x, x[:, :1], **options))

    def raw_weights_after_predict(self):
        model, x = trained_on(walk(50)), numpy.ones((4, 3))
        options = {"verbose": 0, "callbacks": [SwapEMAWeights()]}
        return change_by(model, lambda: model.predict(x, **options))

    def raw_weights_after_fit(self):
        model, samples = with_use_ema(), models.Samples()
        fit(model, samples)
        return change(flat(model.get_weights()), flat(samples.weights[-1]))

    def raw_weights_after_an_exception(self):
        return after_an_exception(with_use_ema(), SwapEMAWeights())

    def best_file(self, file_first):
        # Its documentation says to swap at the end of epochs for checkpoints.
        model, average = with_use_ema(), SwapEMAWeights(True)
        return score_of_best_file(model, average, file_first=file_first)

    def early_stop(self):
        return score_after_early_stop(with_use_ema(), SwapEMAWeights(True))

    def updates_with_accumulation(self):
        optimizer = keras.optimizers.SGD(
            0.05,
            gradient_accumulation_steps=4,
            use_ema=True,
            ema_momentum=DECAY,
        )
        model = compiled(models.dense(), optimizer)
        return updates_in_fit(model, averages)

    def resume(self):
        whole = with_use_ema()
        step_by_step(whole)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "all.keras")
            whole.save(path)
            resumed = keras.saving.load_model(path)
        step_by_step(whole)
        step_by_step(resumed)
        return change(flat(averages(resumed)), flat(averages(whole)))


def trained_on(samples, decay=DECAY, dtype="float32"):
    """Return a model whose weights took a sample at each step."""
    model = vector(len(samples[0]), dtype)
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=decay)
    model.compile(optimizer, "mse")
    x = numpy.ones((1, len(samples[0])), "float32")
    for before, sample in itertools.pairwise(samples):
        if not numpy.array_equal(before, sample) or not optimizer.built:
            model.set_weights([sample[:, None]])
        model.train_on_batch(x, x[:, :1])
    return model


def with_use_ema():
    """Return the model of the checks, with an average in its optimizer."""
    optimizer = keras.optimizers.Adam(0.03, use_ema=True, ema_momentum=DECAY)
    return small(optimizer)


def averages(model):
    """Return the averaged weights as NumPy arrays."""
    return [
        keras.ops.convert_to_numpy(keras.ops.cast(v.value, "float32"))
        for v in model.optimizer.variables
        if "average" in v.path
    ]


def step_by_step(model):
    """Train six steps without `fit`, whose end overwrites the weights."""
    x, y = models.data(6)
    for start in range(0, len(x), models.BATCH):
        batch = slice(start, start + models.BATCH)
        model.train_on_batch(x[batch], y[batch])
