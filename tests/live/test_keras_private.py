"""Private attributes of Keras that are used, and fallbacks without them."""

import inspect

import keras
import models
import pytest
import reused

from keras_wavg import keras_private

X, Y = models.data(3)
MISSING = f"Keras {keras.__version__} no longer has this attribute"
on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="specific to JAX"
)


def test_a_variable_without_a_value_is_detected():
    variable = keras.Variable([1.0])
    assert hasattr(variable, "_value"), MISSING
    assert keras_private.has_value(variable)
    variable._value = None
    assert not keras_private.has_value(variable)


def test_layers_are_found_with_and_without_the_private_method(monkeypatch):
    model = models.nested()
    assert hasattr(model, "_flatten_layers"), MISSING

    def found():
        layers = keras_private.flattened_layers(model)
        return {
            id(layer)
            for layer in layers
            if layer.weights and not isinstance(layer, keras.Model)
        }

    expected = found()
    assert len(expected) == 3
    monkeypatch.delattr(keras.Layer, "_flatten_layers")
    assert found() == expected


@pytest.mark.parametrize("axis", [-1, 1])
def test_reduction_axes_are_found_with_and_without_the_attribute(axis):
    layer = keras.layers.BatchNormalization(axis=axis)
    layer.build((None, 3, 4))
    assert hasattr(layer, "_reduction_axes"), MISSING
    expected = keras_private.reduction_axes(layer)
    del layer._reduction_axes
    assert keras_private.reduction_axes(layer) == expected


def test_batch_normalization_returns_the_moments_over_all_replicas():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4))
    assert hasattr(layer, "_moments"), MISSING
    mean, _ = keras_private.synchronized_moments(layer, X, None)
    received = keras.ops.convert_to_numpy(mean)
    assert received == pytest.approx(X.mean(axis=0), abs=1e-6)


def test_a_layer_knows_that_it_is_rematerialized():
    assert keras_private.rematerialization(keras.layers.Dense(1)) == {}
    with keras.RematScope(mode="full"):
        layer = keras.layers.Dense(1)
    assert keras_private.rematerialization(layer), MISSING


@on_jax
def test_the_jax_trainer_holds_the_current_weights():
    class RecordState(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = self._model
            assert hasattr(model, "_jax_state_synced"), MISSING
            kinds.append(set(keras_private.pending_state(model)))

    kinds = []
    reused.dense().fit(X, Y, verbose=0, callbacks=[RecordState()])
    assert {"trainable_variables", "non_trainable_variables"} <= kinds[0], (
        MISSING
    )


@on_jax
def test_the_jax_trainer_can_keep_the_weights_in_the_model():
    parameters = inspect.signature(keras.Model._get_jax_state).parameters
    assert "purge_model_variables" in parameters, MISSING
    assert hasattr(keras.Model, "jax_state_sync"), MISSING
