"""`update_bn` measures every kind of normalization that Keras trains."""

import keras
import numpy
import pytest
from keras import layers, ops

from keras_wavg import EMA, update_bn

backend = keras.config.backend()
on_torch = pytest.mark.skipif(backend != "torch", reason="specific to torch")

X = numpy.random.default_rng(3).normal(1, 2, (40, 5, 4)).astype("float32")
EPSILON = 1e-3


def update(model, x=X):
    update_bn(model, x, batch_size=len(x), verbose=0)


def measured(layer):
    variables = layer.moving_mean, layer.moving_variance
    return [ops.convert_to_numpy(variable) for variable in variables]


def moments(rows, axes=(0, 1)):
    rows = rows.astype("float64")
    return [rows.mean(axes), rows.var(axes)]


def assert_equal(received, expected):
    for one, other in zip(received, expected, strict=True):
        numpy.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def sequential(*of_layers):
    return keras.Sequential([keras.Input((5, 4)), *of_layers])


# Subclasses


class WithoutMask(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=bool(training))


class OtherNames(layers.BatchNormalization):
    def call(self, x, training=None, mask=None):
        return super().call(x, training, mask)


class OwnFormula(layers.BatchNormalization):
    def call(self, inputs, training=True):
        if training:
            return super().call(inputs, training=True)
        scale = ops.rsqrt(self.moving_variance + self.epsilon)
        return (inputs - self.moving_mean) * scale


@pytest.mark.parametrize("kind", [WithoutMask, OtherNames, OwnFormula])
def test_a_subclass_is_measured_whatever_arguments_its_call_has(kind):
    first, last = kind(), layers.BatchNormalization()
    update(sequential(first, last))
    assert_equal(measured(first), moments(X))
    mean, variance = moments(X)
    normalized = (X - mean) / (variance + EPSILON) ** 0.5
    assert_equal(measured(last), moments(normalized))


# Layers that are called in functions of the backend


class Block(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.BatchNormalization()

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def test_a_layer_in_a_remat_scope_is_measured_and_stays_rematerialized():
    with keras.RematScope(mode="full"):
        mode = layers.Dense(1)._remat_mode
    block = Block()
    model = sequential(block)
    # Not before: on TensorFlow Keras cannot build such a model.
    vars(block)["_remat_mode"] = vars(block.inner)["_remat_mode"] = mode
    update(model)
    assert_equal(measured(block.inner), moments(X))
    assert block._remat_mode is block.inner._remat_mode is mode


class Cell(layers.Layer):
    """Adds the normalized inputs of all time steps."""

    state_size = output_size = 4

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.BatchNormalization()

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, states, training=None):
        total = states[0] + self.inner(inputs, training=training)
        return total, [total]


@pytest.mark.parametrize("length", [5, None])
def test_a_layer_in_the_cell_of_an_rnn_is_measured_over_all_steps(length):
    inputs = keras.Input((length, 4))
    rnn = layers.RNN(Cell())
    last = layers.BatchNormalization()
    model = keras.Model(inputs, last(rnn(inputs)))
    update(model)
    assert_equal(measured(rnn.cell.inner), moments(X))
    mean, variance = X.mean(0), X.var(0)
    totals = ((X - mean) / (variance + EPSILON) ** 0.5).sum(1)
    assert_equal(measured(last), moments(totals, axes=0))
    assert rnn.unroll is False


@pytest.mark.parametrize("length", [5, None])
def test_a_time_distributed_layer_is_measured_over_all_steps(length):
    inputs = keras.Input((length, 4))
    inner = layers.BatchNormalization()
    update(keras.Model(inputs, layers.TimeDistributed(inner)(inputs)))
    assert_equal(measured(inner), moments(X))


def test_a_layer_in_nested_models_that_are_shared_is_measured_in_each():
    inner = layers.BatchNormalization()
    shared = keras.Sequential([keras.Input((5, 4)), inner])
    inputs = keras.Input((5, 4))
    outer = keras.Sequential([keras.Input((5, 4)), shared])
    model = keras.Model(inputs, [shared(inputs), outer(3 * inputs)])
    update(model)
    assert_equal(measured(inner), moments(numpy.concatenate([X, 3 * X])))


# Errors


class Conditional(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return ops.cond(
            ops.sum(inputs) > 0,
            lambda: self.inner(inputs, training=training),
            lambda: inputs,
        )


@pytest.mark.skipif(backend == "torch", reason="torch runs one branch")
def test_the_error_names_a_layer_in_a_function_that_the_backend_transforms():
    model = Conditional()
    model(X)
    with pytest.raises(ValueError, match=r"keras.ops.cond.*conditional/batch"):
        update(model)
    assert_equal(measured(model.inner), [numpy.zeros(4), numpy.ones(4)])


class AlwaysTraining(layers.BatchNormalization):
    def call(self, inputs):
        return super().call(inputs, training=True)


def test_the_error_names_a_layer_that_always_trains():
    inner = AlwaysTraining()
    model = sequential(inner)
    before = measured(inner)
    with pytest.raises(ValueError, match=r"tensors as its .*/always_training'"):
        update(model)
    assert_equal(measured(inner), before)
    with pytest.raises(ValueError, match=r"accept the batches of `data`"):
        update(model, X[..., :3])


# Modules of torch


def torch_model():
    import torch

    modules = torch.nn.Sequential(
        torch.nn.BatchNorm1d(5, eps=EPSILON),
        torch.nn.BatchNorm1d(5, track_running_stats=False),
        torch.nn.BatchNorm1d(5, momentum=None),
    )
    model = sequential(layers.TorchModuleWrapper(modules))
    model.compile("sgd", "mse")
    return model, modules


@on_torch
def test_a_normalization_of_torch_is_measured():
    model, modules = torch_model()
    forward = modules[0].forward
    update(model)
    mean, variance = moments(X, axes=(0, 2))
    received = [modules[0].running_mean.numpy(), modules[0].running_var.numpy()]
    assert_equal(received, [mean, variance])
    assert_equal([modules[2].running_mean.numpy()], [numpy.zeros(5)])
    assert modules[0].forward == forward
    assert modules[0].num_batches_tracked == 0
    outputs = model.predict(X, verbose=0).astype("float64")
    assert_equal(moments(outputs, axes=(0, 2)), [numpy.zeros(5), numpy.ones(5)])


@on_torch
def test_a_frozen_normalization_of_torch_keeps_its_statistics():
    model, modules = torch_model()
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="must have a trainable"):
        update(model)
    assert_equal([modules[0].running_mean.numpy()], [numpy.zeros(5)])


@on_torch
def test_batch_norm_data_refuses_statistics_that_are_not_weights():
    model, _ = torch_model()
    ema = EMA(0.9, batch_norm_data=X)
    message = r"must be weights of the model.*torch_module_wrapper.*/0'"
    with pytest.raises(ValueError, match=message):
        model.fit(X, X, verbose=0, callbacks=[ema])


@on_torch
def test_an_average_warns_of_statistics_that_are_not_weights():
    model, _ = torch_model()
    with pytest.warns(UserWarning, match=r"buffers.*`update_bn"):
        model.fit(X, X, verbose=0, callbacks=[EMA(0.9)])
