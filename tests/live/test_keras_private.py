"""What is private to Keras is still there, and what happens when it is not."""

import inspect

import keras
import models
import pytest
import reused

from keras_wavg import keras_private

X, Y = models.data(3)
LOST = f"Keras {keras.__version__} has it no more"
on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="a matter of JAX's trainer"
)


def test_a_variable_has_its_value_where_it_is_read():
    variable = keras.Variable([1.0])
    assert hasattr(variable, "_value"), LOST
    assert keras_private.has_value(variable)
    variable._value = None
    assert not keras_private.has_value(variable)


def test_the_layers_of_a_model_are_found_with_and_without_it(monkeypatch):
    model = models.nested()
    assert hasattr(model, "_flatten_layers"), LOST

    def found():
        layers = keras_private.flattened_layers(model)
        return {
            id(layer)
            for layer in layers
            if layer.weights and not isinstance(layer, keras.Model)
        }

    known = found()
    assert len(known) == 3
    monkeypatch.delattr(keras.Layer, "_flatten_layers")
    assert found() == known


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_axes_of_statistics_are_found_with_and_without_it(axis):
    layer = keras.layers.BatchNormalization(axis=axis)
    layer.build((None, 3, 4))
    assert hasattr(layer, "_reduction_axes"), LOST
    known = keras_private.reduction_axes(layer)
    del layer._reduction_axes
    assert keras_private.reduction_axes(layer) == known


def test_a_layer_tells_the_moments_over_all_replicas():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4))
    assert hasattr(layer, "_moments"), LOST
    mean, _ = keras_private.synchronized_moments(layer, X, None)
    received = keras.ops.convert_to_numpy(mean)
    assert received == pytest.approx(X.mean(axis=0), abs=1e-6)


@on_jax
def test_the_trainer_keeps_the_weights_of_now():
    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = self._model
            assert hasattr(model, "_jax_state_synced"), LOST
            kinds.append(set(keras_private.pending_state(model)))

    kinds = []
    reused.dense().fit(X, Y, verbose=0, callbacks=[Look()])
    assert {"trainable_variables", "non_trainable_variables"} <= kinds[0], LOST


@on_jax
def test_the_trainer_can_be_asked_to_leave_the_weights():
    known = inspect.signature(keras.Model._get_jax_state).parameters
    assert "purge_model_variables" in known, LOST
    assert hasattr(keras.Model, "jax_state_sync"), LOST
