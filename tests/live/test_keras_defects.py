"""Defects of Keras 3.15.1's `use_ema` and `SwapEMAWeights` that are not here.

The README lists them. `test_defect_*` shows each in Keras, so that the list is
true of the Keras that is installed: an upstream repair turns it red here first.
The names of our own tests of the same sequence stand in the README.
"""

import keras
import models
import numpy
import pytest
from models import BATCH, compiled, data, equal

from keras_wavg import EMA

X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
BACKEND = keras.config.backend()


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def with_use_ema(model=None, **options):
    optimizer = keras.optimizers.Adam(
        0.03, use_ema=True, ema_momentum=0.8, **options
    )
    return compiled(model or models.dense(), optimizer)


def with_ema():
    return compiled(models.dense(), keras.optimizers.Adam(0.03))


def trained_halfway(model, *callbacks):
    """Trained, and holding its raw weights."""
    for start in range(0, len(X), BATCH):
        model.train_on_batch(X[start : start + BATCH], Y[start : start + BATCH])
    return model


def test_defect_raw_weights_are_not_given_back_after_predict():
    model = trained_halfway(with_use_ema())
    raw = model.get_weights()
    model.predict(X, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    assert not equal(model.get_weights(), raw)


def test_raw_weights_are_given_back_after_predict():
    model, ema = with_ema(), EMA(0.8)
    fit(model, ema)
    ema.restore()
    raw = model.get_weights()
    model.predict(X, verbose=0, callbacks=[ema])
    assert equal(model.get_weights(), raw)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exact on the others")
def test_defect_a_swap_on_tensorflow_loses_bits():
    model = trained_halfway(with_use_ema())
    raw = model.get_weights()
    model.evaluate(
        X, Y, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()]
    )
    assert not equal(model.get_weights(), raw)


@pytest.mark.skipif(BACKEND != "jax", reason="a matter of buffer donation")
def test_defect_a_second_fit_crashes_on_jax():
    model = with_use_ema()
    fit(model)
    with pytest.raises(Exception, match=r"donate|not callable|deleted"):
        fit(model)


def test_a_second_fit_works():
    model, ema = with_ema(), EMA(0.8)
    fit(model, ema)
    fit(model, ema)


class StopEarly(keras.callbacks.Callback):
    """Stops after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """Stop."""
        self.model.stop_training = epoch == 1


def test_defect_an_early_stop_ends_on_the_raw_weights():
    # Swapped at each epoch's end, the model should end on the average.
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    stopped, whole = with_use_ema(), with_use_ema()
    options = {"validation_data": (X_VAL, Y_VAL), "shuffle": False}
    history = fit(stopped, swap, StopEarly(), epochs=9, **options)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    fit(whole, swap, epochs=2, **options)
    received = stopped.evaluate(X_VAL, Y_VAL, verbose=0)
    assert received != pytest.approx(history.history["val_loss"][-1], rel=1e-6)
    assert whole.evaluate(X_VAL, Y_VAL, verbose=0) == pytest.approx(
        history.history["val_loss"][-1], rel=1e-4
    )


@pytest.mark.parametrize("ours", [False, True])
def test_defect_the_best_file_scores_something_else_than_was_logged(
    ours, tmp_path
):
    model = with_ema() if ours else with_use_ema()
    average = EMA(0.8) if ours else keras.callbacks.SwapEMAWeights()
    save = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5",
        save_best_only=True,
        save_weights_only=True,
    )
    history = fit(
        model, average, save, validation_data=(X_VAL, Y_VAL), epochs=4
    )
    saved = with_ema()
    saved.load_weights(tmp_path / "best.weights.h5", skip_mismatch=True)
    received = saved.evaluate(X_VAL, Y_VAL, verbose=0)
    best = min(history.history["val_loss"])
    assert (received == pytest.approx(best, rel=1e-6)) == ours


def test_defect_the_average_moves_at_every_accumulated_batch():
    model = with_use_ema(gradient_accumulation_steps=4)
    averages = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = self.model
            averages.append(
                [
                    keras.ops.convert_to_numpy(v.value)
                    for v in model.optimizer.variables
                    if "average" in v.path
                ]
            )

    model.fit(
        numpy.concatenate([X, X]),
        numpy.concatenate([Y, Y]),
        batch_size=BATCH,
        verbose=0,
        callbacks=[Look()],
    )
    assert not equal(averages[8], averages[9])


@pytest.mark.skipif(BACKEND == "torch", reason="moves there, inexactly")
def test_defect_a_bfloat16_average_never_moves():
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
    averages = [v for v in optimizer.variables if "average" in v.path]
    for average in averages:
        assert float(keras.ops.max(average.value)) == 1.0


def test_defect_a_layer_frozen_after_fit_cannot_be_trained_again():
    model = with_use_ema()
    fit(model)
    for variable in model.trainable_variables:
        # Or the donated buffers of the second fit hide this on JAX.
        variable.assign(keras.ops.copy(variable.value))
    model.layers[0].trainable = False
    with pytest.raises(Exception):  # noqa: B017, PT011
        fit(model)


def test_defect_moving_statistics_are_not_averaged():
    model = with_use_ema(models.batch_norm())
    fit(model)
    averages = [v for v in model.optimizer.variables if "average" in v.path]
    assert len(averages) == len(model.trainable_variables) < len(model.weights)


def test_defect_raw_weights_are_gone_after_fit():
    model, samples = with_use_ema(), models.Samples()
    fit(model, samples)
    assert not equal(model.get_weights(), samples.weights[-1])
    raw = [w.tobytes() for w in samples.weights[-1]]
    kept = [
        keras.ops.convert_to_numpy(v.value) for v in model.optimizer.variables
    ]
    assert not set(raw) & {w.tobytes() for w in kept}
