"""Small Keras models and trainings, the same with any average."""

import tempfile
import warnings
from pathlib import Path

import keras
import models
import numpy
from models import BATCH, compiled, data
from parity_library import change, moved


def vector(size, dtype="float32"):
    """One weight for each input."""
    layer = keras.layers.Dense(1, use_bias=False, dtype=dtype)
    return keras.Sequential([keras.Input((size,)), layer])


def small(optimizer=None):
    """A model of 37 weights that learns fast enough to change."""
    return compiled(models.dense(), optimizer or keras.optimizers.Adam(0.03))


def fit(model, *callbacks, epochs=2, **options):
    """Six batches an epoch, always in the same order."""
    x, y = data(6)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def flat(weights):
    """All numbers in one array."""
    return numpy.concatenate([numpy.ravel(w) for w in weights])


def change_by(model, action):
    """How much an action changes the weights of a model."""
    before = flat(model.get_weights())
    action()
    return change(flat(model.get_weights()), before)


class FailInValidation(keras.callbacks.Callback):
    """Raises in the second validation."""

    validations = 0

    def on_test_batch_end(self, batch, logs=None):
        """Raise."""
        self.validations += 1
        if self.validations == 2:
            raise InterruptedError


def after_an_exception(model, average):
    """The change of the raw weights that the next `fit` begins with."""
    samples, again = models.Samples(), models.Samples()
    x, y = data(1, seed=1)
    try:
        fit(
            model,
            samples,
            average,
            FailInValidation(),
            validation_data=(x, y),
        )
    except InterruptedError:
        fit(model, average, again, epochs=1)
        return change(flat(again.initial), flat(samples.weights[-1]))
    raise AssertionError


def score_of_best_file(model, average, *, file_first=False):
    """The score of the file of the best epoch, by what was logged."""
    x, y = data(4, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "best.weights.h5")
        save = keras.callbacks.ModelCheckpoint(
            path, save_best_only=True, save_weights_only=True
        )
        callbacks = [save, average] if file_first else [average, save]
        options = {"epochs": 4, "validation_data": (x, y)}
        logs = fit(model, *callbacks, **options).history
        saved = small()
        with warnings.catch_warnings():
            # Of the optimizer, which is not needed.
            warnings.simplefilter("ignore")
            saved.load_weights(path, skip_mismatch=True)
    return change(saved.evaluate(x, y, verbose=0), min(logs["val_loss"]))


def moves(model, read, *callbacks):
    """How often the average moves in the batches 9 to 16."""
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch >= 7:
                seen.append(flat(read(self.model)))

    x, y = data(16)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[*callbacks, Look()], **options)
    return moved(seen)


class StopEarly(keras.callbacks.Callback):
    """Stops after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """Stop."""
        self.model.stop_training = epoch == 1


def score_after_early_stop(model, average):
    """The score of what `fit` leaves, by what was logged last."""
    x, y = data(4, seed=1)
    options = {"epochs": 9, "validation_data": (x, y)}
    logs = fit(model, average, StopEarly(), **options).history
    return change(model.evaluate(x, y, verbose=0), logs["val_loss"][-1])
