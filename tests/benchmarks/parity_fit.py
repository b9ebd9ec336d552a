"""Small Keras models and trainings, the same for every average."""

import tempfile
import warnings
from pathlib import Path

import keras
import models
import numpy
from models import BATCH, compiled, data
from parity_library import change, count_updates


def vector(size, dtype="float32"):
    """Return a model with one weight per input."""
    layer = keras.layers.Dense(1, use_bias=False, dtype=dtype)
    return keras.Sequential([keras.Input((size,)), layer])


def small(optimizer=None):
    """Return a model of 37 weights that changes quickly in training."""
    return compiled(models.dense(), optimizer or keras.optimizers.Adam(0.03))


def fit(model, *callbacks, epochs=2, **options):
    """Train on six batches per epoch, always in the same order."""
    x, y = data(6)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def flat(weights):
    """Concatenate all weights in one array."""
    return numpy.concatenate([numpy.ravel(w) for w in weights])


def change_by(model, action):
    """Return how much an action changes the weights of a model."""
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
    """Return the change of the raw weights at the start of the next `fit`."""
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
    """Compare the score of the best checkpoint with the logged score."""
    x, y = data(4, seed=1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "best.weights.h5")
        save = keras.callbacks.ModelCheckpoint(
            path, save_best_only=True, save_weights_only=True
        )
        callbacks = [save, average] if file_first else [average, save]
        options = {"epochs": 4, "validation_data": (x, y)}
        logs = fit(model, *callbacks, **options).history
        saved = small()
        with warnings.catch_warnings():
            # The checkpoint has an optimizer state that is not loaded.
            warnings.simplefilter("ignore")
            saved.load_weights(path, skip_mismatch=True)
    return change(saved.evaluate(x, y, verbose=0), min(logs["val_loss"]))


def updates_in_fit(model, read, *callbacks):
    """Count the updates of the average in the batches 9 to 16."""
    seen = []

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch >= 7:
                seen.append(flat(read(self.model)))

    x, y = data(16)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[*callbacks, Recorder()], **options)
    return count_updates(seen)


class StopEarly(keras.callbacks.Callback):
    """Stops after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """Stop."""
        self.model.stop_training = epoch == 1


def score_after_early_stop(model, average):
    """Compare the score of the model after `fit` with the logged score."""
    x, y = data(4, seed=1)
    options = {"epochs": 9, "validation_data": (x, y)}
    logs = fit(model, average, StopEarly(), **options).history
    return change(model.evaluate(x, y, verbose=0), logs["val_loss"][-1])
