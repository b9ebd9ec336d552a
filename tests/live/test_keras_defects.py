"""Defects of `use_ema` and `SwapEMAWeights` in Keras 3.15.1.

`tests/benchmarks/README.md` lists them, with the tests of this package for the
same sequences. A `test_defect_*` fails once Keras repairs the defect, so that
the list stays true.
"""

from types import SimpleNamespace

import keras
import models
import numpy
import probe
import pytest
from keras.callbacks import SwapEMAWeights
from models import BATCH, compiled, data, equal

from keras_wavg import EMA

X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
BACKEND = keras.config.backend()
EPOCHS = 4


def fit(model, *callbacks, epochs=1):
    return model.fit(
        X,
        Y,
        epochs=epochs,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        validation_data=(X_VAL, Y_VAL),
        callbacks=[*callbacks],
    ).history


def with_use_ema(model=None, **options):
    optimizer = keras.optimizers.SGD(use_ema=True, ema_momentum=0.8, **options)
    return compiled(model or models.dense(), optimizer)


def optimizer_variables(optimizer, name=""):
    """Values of the variables whose paths contain `name`."""
    return [
        keras.ops.convert_to_numpy(v.value)
        for v in optimizer.variables
        if name in v.path
    ]


def trained(directory, model, average):
    """Train, and save a file of the best epoch."""
    samples = models.Samples()
    best = keras.callbacks.ModelCheckpoint(
        directory / "best.weights.h5",
        save_best_only=True,
        save_weights_only=True,
    )
    history = fit(model, samples, average, best, epochs=EPOCHS)
    return SimpleNamespace(
        model=model,
        average=average,
        samples=samples,
        shown=model.get_weights(),
        kept=optimizer_variables(model.optimizer),
        history=history,
        file=directory / "best.weights.h5",
    )


@pytest.fixture(scope="module")
def keras_run(tmp_path_factory):
    """A training with Keras' average."""
    directory = tmp_path_factory.mktemp("keras")
    return trained(directory, with_use_ema(models.nested()), SwapEMAWeights())


@pytest.fixture(scope="module")
def our_run(tmp_path_factory):
    """The same training with the average of this package."""
    model = compiled(models.nested())
    return trained(tmp_path_factory.mktemp("ours"), model, EMA(0.8))


@pytest.fixture(scope="module")
def accumulated():
    """A training that accumulates the gradients of four batches."""
    model, averages = with_use_ema(gradient_accumulation_steps=4), []
    for batch in models.generator(10):
        model.train_on_batch(*batch)
        averages.append(optimizer_variables(model.optimizer, "average"))
    raw = model.get_weights()
    return SimpleNamespace(model=model, averages=averages, raw=raw)


@pytest.fixture
def accumulated_model(accumulated):
    """The model of `accumulated`, with its raw weights and averages."""
    model, averages = accumulated.model, iter(accumulated.averages[-1])
    model.set_weights(accumulated.raw)
    for variable in model.optimizer.variables:
        if "average" in variable.path:
            variable.assign(next(averages))
    return model


def test_defect_raw_weights_are_not_restored_after_predict(accumulated_model):
    raw = accumulated_model.get_weights()
    accumulated_model.predict(X, verbose=0, callbacks=[SwapEMAWeights()])
    assert not equal(accumulated_model.get_weights(), raw)


def test_raw_weights_are_restored_after_predict(our_run):
    model, ema = our_run.model, our_run.average
    ema.restore()
    raw = model.get_weights()
    model.predict(X, verbose=0, callbacks=[ema])
    assert equal(model.get_weights(), raw)
    assert not equal(ema.get_weights(), raw)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exact on other backends")
def test_defect_a_swap_on_tensorflow_loses_bits(accumulated_model):
    raw = accumulated_model.get_weights()
    accumulated_model.evaluate(X, Y, verbose=0, callbacks=[SwapEMAWeights()])
    assert not equal(accumulated_model.get_weights(), raw)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX donates buffers")
def test_defect_a_second_fit_crashes_on_jax():
    model = with_use_ema()
    fit(model)
    with pytest.raises(Exception, match=r"donate|not callable|deleted"):
        fit(model)


def test_a_second_fit_works(our_run):
    before = probe.counts(our_run.average).averaged
    fit(our_run.model, our_run.average)
    assert probe.counts(our_run.average).averaged == before + 6


class StopEarly(keras.callbacks.Callback):
    """Stops after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """Stop."""
        self.model.stop_training = epoch == 1


def test_defect_an_early_stop_ends_on_the_raw_weights():
    # Swapped in at each epoch's end, the average should be the result.
    for epochs, stop, is_defect in ((9, [StopEarly()], True), (2, [], False)):
        model = with_use_ema()
        swap = SwapEMAWeights(swap_on_epoch=True)
        scores = fit(model, swap, *stop, epochs=epochs)["val_loss"]
        assert len(scores) == 2
        received = model.evaluate(X_VAL, Y_VAL, verbose=0)
        error = 1e-6 if is_defect else 1e-4
        is_average = received == pytest.approx(scores[-1], rel=error)
        assert is_average != is_defect


def test_defect_the_best_file_does_not_have_the_logged_score(
    keras_run, our_run
):
    saved = compiled(models.nested())
    for run in (keras_run, our_run):
        saved.load_weights(run.file, skip_mismatch=True)
        received = saved.evaluate(X_VAL, Y_VAL, verbose=0)
        best = min(run.history["val_loss"])
        is_ours = run is our_run
        assert (received == pytest.approx(best, rel=1e-6)) == is_ours


def test_defect_the_average_is_updated_at_every_accumulated_batch(accumulated):
    assert not equal(accumulated.averages[8], accumulated.averages[9])


@pytest.mark.skipif(BACKEND == "torch", reason="changes there, inexactly")
def test_defect_a_bfloat16_average_never_changes():
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.999)
    model.compile(optimizer, "mse")
    x = numpy.ones((8, 1), "float32")
    model.set_weights([numpy.ones((1, 1)), numpy.ones(1)])
    model.train_on_batch(x, x)
    model.set_weights([numpy.full((1, 1), 2.0), numpy.full(1, 2.0)])
    for _ in range(50):
        model.train_on_batch(x, x)
    averages = optimizer_variables(optimizer, "average")
    assert [float(average.max()) for average in averages] == [1.0, 1.0]


def test_defect_moving_statistics_are_not_averaged(keras_run):
    model = keras_run.model
    averages = [v for v in model.optimizer.variables if "average" in v.path]
    assert len(averages) == len(model.trainable_variables) < len(model.weights)


def test_defect_raw_weights_are_lost_after_fit(keras_run):
    assert not equal(keras_run.shown, keras_run.samples.weights[-1])
    raw = {w.tobytes() for w in keras_run.samples.weights[-1]}
    assert not raw & {array.tobytes() for array in keras_run.kept}


def test_defect_a_layer_frozen_after_fit_cannot_be_trained_again(keras_run):
    model = keras_run.model
    for variable, value in zip(model.weights, keras_run.shown, strict=True):
        # Otherwise buffers donated in the second fit hide this on JAX.
        variable.assign(value)
    model.layers[1].trainable = False
    with pytest.raises(ValueError, match=r"Shape mismatch|does not match"):
        fit(model)
