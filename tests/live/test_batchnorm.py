"""`update_bn` measures statistics on the data, and changes nothing else."""

from collections.abc import Iterator

import keras
import numpy
import pytest
from keras import layers, ops
from models import equal

from keras_wavg import batchnorm
from keras_wavg.batchnorm import Measurement, update_bn

backend = keras.config.backend()
on_jax = pytest.mark.skipif(backend != "jax", reason="specific to JAX")
on_tensorflow = pytest.mark.skipif(
    backend != "tensorflow", reason="specific to TensorFlow"
)
on_torch = pytest.mark.skipif(backend != "torch", reason="specific to torch")

RNG = numpy.random.default_rng(7)
# 70 samples in batches of 16: four full batches and one of 6.
X = RNG.normal([0, 1, -1, 0.5], [1, 0.5, 2, 0.7], (70, 4)).astype("float32")
Y = X[:, :1]
WEIGHTS = RNG.uniform(0.5, 1.0, size=70).astype("float32")
FULL_BATCHES = X[:32], Y[:32]
TOKENS = numpy.where(
    numpy.arange(6) < RNG.integers(1, 7, size=(70, 1)),
    RNG.integers(1, 9, size=(70, 6)),
    0,
)


DEFAULTS = {"batch_size": 16, "verbose": 0}


def update(model, data=X, **options):
    update_bn(model, data, **DEFAULTS | options)


def normalizations(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


def statistics(model):
    return [
        ops.convert_to_numpy(variable)
        for layer in normalizations(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def all_variables(model):
    """The variables of weights, seeds, optimizer and metrics."""
    optimizer = getattr(model, "optimizer", None)
    return [
        *model.variables,
        *getattr(optimizer, "variables", []),
        *model.metrics_variables,
    ]


def other_values(model):
    """The values of all variables except the statistics."""
    excluded = {
        id(variable)
        for layer in normalizations(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [
        ops.convert_to_numpy(variable)
        for variable in all_variables(model)
        if id(variable) not in excluded
    ]


def error(received, expected):
    """The largest relative error of alternating means and variances.

    That of a mean is relative to the standard deviation if it is larger.
    """
    received, expected = (
        [numpy.asarray(array, "float64") for array in arrays]
        for arrays in (received, expected)
    )
    assert len(received) == len(expected)
    errors = []
    for i in range(0, len(expected), 2):
        mean, variance = expected[i : i + 2]
        scale = numpy.maximum(abs(mean), variance**0.5)
        errors.append(abs(received[i] - mean) / scale)
        errors.append(abs(received[i + 1] - variance) / variance)
    # `numpy.max` returns NaN if there is one, Python's `max` may not.
    return numpy.max([array.max() for array in errors])


class Measured:
    """A model whose pass over data is compiled once for many tests.

    `update_bn` creates a `Measurement` that it discards after one update.
    """

    def __init__(self, model):
        self.model = model
        self.measurement = Measurement(model)

    def update(self, data=X, **options):
        self.measurement.update(data, **DEFAULTS | options)

    def statistics(self, data=X, before=numpy.nan, **options):
        """The measured statistics, after they were set to `before`."""
        for layer in normalizations(self.model):
            for variable in (layer.moving_mean, layer.moving_variance):
                variable.assign(ops.full(variable.shape, before))
        self.update(data, **options)
        return statistics(self.model)


def batches(x, size=16):
    return [
        keras.tree.map_structure(lambda a: a[i : i + size], x)  # noqa: B023
        for i in range(0, len(keras.tree.flatten(x)[0]), size)
    ]


# What is measured


def normalization_only(shape=(4,), **options):
    """A model that only normalizes its inputs."""
    return keras.Sequential(
        [keras.Input(shape), layers.BatchNormalization(**options)]
    )


SORTED = (RNG.normal(size=(70, 4)) * numpy.arange(1, 71)[:, None]).astype(
    "float32"
)
FAR = (RNG.normal(size=(70, 4)) + 1000).astype("float32")


@pytest.fixture(scope="module")
def plain():
    return Measured(normalization_only())


@pytest.mark.parametrize("x", [X, SORTED, FAR], ids=range(3))
def test_the_first_layer_has_the_moments_of_all_the_data(plain, x):
    rows = x.astype("float64")
    assert error(plain.statistics(x), [rows.mean(0), rows.var(0)]) < 1e-6


def test_the_statistics_of_images_are_exact_for_each_channel():
    images = Measured(normalization_only((None, None, 3)))
    rng = numpy.random.default_rng(0)
    several = rng.normal(size=(20, 9, 8, 3)).astype("float32") ** 2
    long = rng.random((16, 96, 96, 3)).astype("float32")
    for x in (several, long):
        rows = x.astype("float64").reshape(-1, 3)
        assert error(images.statistics(x), [rows.mean(0), rows.var(0)]) < 1e-6


def test_the_mean_of_batch_variances_is_wrong_for_sorted_data(plain):
    _, received = plain.statistics(SORTED, variance="batch_mean")
    variance = SORTED.astype("float64").var(axis=0)
    assert (received < 0.8 * variance).any()


def test_the_order_and_the_batch_size_of_the_data_do_not_matter(plain):
    expected = plain.statistics(X)
    mixed = X[numpy.random.default_rng(0).permutation(70)]
    assert error(plain.statistics(mixed), expected) < 1e-6
    for size in (5, 23, 70):
        received = plain.statistics(mixed, batch_size=size)
        assert error(received, expected) < 1e-6


def deep():
    """A model with two normalizations, and noise that must be inactive."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.GaussianNoise(1.0, seed=1),
            layers.Dense(6, activation="tanh"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(0.5, seed=2),
            layers.Dense(5),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    rng = numpy.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.1, 0.5, size=variable.shape))
    return model


def naive(model, rule="population"):
    """The statistics by definition, in float64."""
    kernel, bias, gamma, beta, kernel_2, bias_2 = (
        ops.convert_to_numpy(variable).astype("float64")
        for variable in model.trainable_variables[:6]
    )
    seen = [], []
    for x in batches(X.astype("float64")):
        hidden = numpy.tanh(x @ kernel + bias)
        seen[0].append(hidden)
        normal = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-3) ** 0.5
        seen[1].append((normal * gamma + beta) @ kernel_2 + bias_2)
    if rule == "population":
        rows = [numpy.concatenate(arrays) for arrays in seen]
        return [m for row in rows for m in (row.mean(0), row.var(0))]
    return [
        numpy.mean([moment(array) for array in arrays], axis=0)
        for arrays in seen
        for moment in (lambda a: a.mean(0), lambda a: a.var(0, ddof=1))
    ]


@pytest.fixture(scope="module")
def net():
    return Measured(deep())


@pytest.mark.parametrize("rule", ["population", "batch_mean"])
def test_the_statistics_of_a_deep_model_equal_their_definition(net, rule):
    expected = naive(net.model, rule)
    assert error(net.statistics(variance=rule), expected) < 1e-6


def test_the_previous_statistics_do_not_matter(net):
    first, second = (net.statistics(before=value) for value in (7, numpy.nan))
    assert equal(first, second)


@on_torch
@pytest.mark.parametrize("size", [16, 35])
def test_batch_mean_equals_update_bn_of_torch(net, size):
    import torch

    kernel, bias, gamma, beta, kernel_2, bias_2 = (
        v.value.detach() for v in net.model.trainable_variables[:6]
    )
    normals = [torch.nn.BatchNorm1d(n, eps=1e-3) for n in (6, 5)]
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        torch.nn.Tanh(),
        normals[0],
        torch.nn.Linear(6, 5),
        normals[1],
    )
    values = (kernel.T, bias, gamma, beta, kernel_2.T, bias_2)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=False):
            parameter.copy_(value)
    torch.optim.swa_utils.update_bn(map(torch.tensor, batches(X, size)), module)
    expected = [
        buffer.numpy()
        for normal in normals
        for buffer in (normal.running_mean, normal.running_var)
    ]
    received = net.statistics(batch_size=size, variance="batch_mean")
    assert error(received, expected) < 1e-5


# Kinds of data


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return batches((X, Y, WEIGHTS))[index]


def arrays():
    return X


def a_pair():
    return X, Y


def with_sample_weights():
    return X, Y, WEIGHTS


def tensors():
    return ops.convert_to_tensor(X), ops.convert_to_tensor(Y)


def py_dataset():
    return Batches()


def generator():
    return (batch for batch in batches((X, Y)))


def generator_of_inputs():
    return ((batch,) for batch in batches(X))


def data_loader():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=16)


def tf_data():
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(16)


KINDS_OF_DATA = [
    arrays,
    a_pair,
    with_sample_weights,
    tensors,
    py_dataset,
    generator,
    generator_of_inputs,
    data_loader,
    tf_data,
]


def options_for(kind):
    """Only arrays are split into batches."""
    return {"batch_size": 16 if kind in KINDS_OF_DATA[:4] else None}


@pytest.mark.parametrize("kind", KINDS_OF_DATA, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("error:Your input ran out of data")
def test_all_kinds_of_data_give_the_same_statistics(net, kind):
    received = net.statistics(kind(), **options_for(kind))
    assert error(received, naive(net.model)) < 1e-6


@pytest.mark.parametrize(
    "kind",
    [arrays, py_dataset, generator, data_loader, tf_data],
    ids=lambda kind: kind.__name__,
)
def test_steps_limits_the_data_to_the_first_batches(plain, kind):
    expected = plain.statistics(X[:48])
    received = plain.statistics(kind(), steps=3, **options_for(kind))
    assert error(received, expected) < 1e-6


def test_arrays_are_split_into_batches_of_32_by_default(plain):
    expected = plain.statistics(X[:32])
    received = plain.statistics(X, steps=1, batch_size=None)
    assert error(received, expected) < 1e-6


def test_endless_data_is_read_for_the_given_number_of_steps(plain):
    def endless():
        while True:
            yield from batches((X, Y))

    received = plain.statistics(endless(), steps=10, batch_size=None)
    assert error(received, [X.mean(0), X.var(0)]) < 1e-5


def two_inputs():
    keras.utils.set_random_seed(1)
    first, second = keras.Input((4,), name="first"), keras.Input((1,), name="y")
    both = layers.Concatenate()([first, second])
    normal = layers.BatchNormalization()(both)
    return keras.Model({"first": first, "y": second}, normal)


def test_several_inputs_may_be_a_dict_or_a_list():
    two = Measured(two_inputs())
    by_name = two.statistics({"first": X, "y": Y})
    both = numpy.concatenate([X, Y], axis=1).astype("float64")
    assert error(by_name, [both.mean(0), both.var(0)]) < 1e-6
    assert equal(two.statistics([X, Y]), by_name)


# Kinds of models


def dense(units=4, **options):
    return layers.Dense(units, activation="tanh", **options)


def functional():
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(dense()(inputs))
    merged = layers.Add()([inputs, hidden])
    return keras.Model(inputs, layers.BatchNormalization()(merged))


def nested():
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(functional()(inputs))
    return keras.Model(inputs, layers.Dense(1)(hidden))


def channels_first(channels=4, **options):
    """A model with a normalization of channels that are not the last axis."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            dense(2 * channels),
            layers.Reshape((channels, 2)),
            layers.BatchNormalization(axis=1, **options),
            layers.Conv1D(3, 2, padding="same"),
            layers.BatchNormalization(scale=False, center=False),
        ]
    )


class Block(layers.Layer):
    def __init__(self):
        super().__init__()
        self.parts = [dense(), layers.BatchNormalization()]

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


class Blocks(keras.Model):
    """Blocks in a list, without a `training` argument of `call`."""

    def __init__(self):
        super().__init__()
        self.blocks = [Block(), Block()]
        self.head = {"normal": layers.BatchNormalization()}

    def call(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return self.head["normal"](inputs)


def subclassed():
    model = Blocks()
    model(X[:2])
    return model


def masked():
    """A model in which a mask passes through two normalizations."""
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(9, 5, mask_zero=True),
            layers.BatchNormalization(),
            layers.TimeDistributed(layers.Dense(3)),
            layers.BatchNormalization(),
        ]
    )


def with_policy(policy):
    def build():
        keras.config.set_dtype_policy(policy)
        try:
            return channels_first()
        finally:
            keras.config.set_dtype_policy("float32")

    return build


KINDS_OF_MODELS = {
    "axis_1": channels_first,
    "subclassed": subclassed,
    "masked": masked,
    "mixed_float16": with_policy("mixed_float16"),
    "bfloat16": with_policy("bfloat16"),
    "float64": with_policy("float64"),
}


def by_keras(model, x):
    """The statistics that Keras computes for each batch in training."""
    seen = []
    momenta = [layer.momentum for layer in normalizations(model)]
    for layer in normalizations(model):
        layer.momentum = 0.0
    for batch in batches(x):
        model(batch, training=True)
        seen.append([s.astype("float64") for s in statistics(model)])
    for layer, momentum in zip(normalizations(model), momenta, strict=True):
        layer.momentum = momentum
    return seen


def pooled(seen, counts):
    counts = numpy.array([*counts], "float64")[:, None]
    counts /= counts.sum()
    together = []
    for means, variances in zip(
        *[list(zip(*seen, strict=True))[i::2] for i in range(2)], strict=True
    ):
        mean = (counts * means).sum(0)
        squares = numpy.array(variances) + numpy.array(means) ** 2
        together += [mean, (counts * squares).sum(0) - mean**2]
    return together


@pytest.mark.parametrize("kind", KINDS_OF_MODELS)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_the_statistics_are_those_that_keras_computes_in_training(kind):
    keras.utils.set_random_seed(1)
    model = KINDS_OF_MODELS[kind]()
    x = (TOKENS if kind == "masked" else X)[:22]
    expected = pooled(
        by_keras(model, x),
        [
            (batch > 0).sum() if kind == "masked" else len(batch)
            for batch in batches(x)
        ],
    )
    update(model, x)
    tolerance = {"mixed_float16": 2e-3, "bfloat16": 3e-2}.get(kind, 1e-5)
    assert error(statistics(model), expected) < tolerance
    if kind == "mixed_float16":
        dtypes = {array.dtype.name for array in statistics(model)}
        assert dtypes == {"float32"}


def test_a_model_is_measured_with_each_compile_option():
    keras.utils.set_random_seed(1)
    model, x = nested(), X[:22]
    expected = pooled(by_keras(model, x), map(len, batches(x)))
    update(model, x)
    assert error(statistics(model), expected) < 1e-5
    for options in [
        {"run_eagerly": True},
        {"jit_compile": False},
        {"jit_compile": True},
        {"steps_per_execution": 1 if backend == "torch" else 3},
    ]:
        model.compile("sgd", "mse", **options)
        received = Measured(model).statistics(x)
        assert error(received, expected) < 1e-5


def test_frozen_layers_keep_and_use_their_statistics():
    frozen = normalization_only(trainable=False)
    frozen.layers[0].moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    model = keras.Sequential(
        [keras.Input((4,)), frozen, layers.BatchNormalization()]
    )
    before = statistics(model)[:2]
    update(model)
    assert equal(statistics(model)[:2], before)
    scaled = (X.astype("float64") - [1, 2, 3, 4]) / (1 + 1e-3) ** 0.5
    expected = [scaled.mean(0), scaled.var(0)]
    assert error(statistics(model)[2:], expected) < 1e-6


def test_shared_layers_are_measured_over_all_of_their_calls():
    inputs = keras.Input((4,))
    layer, of_time_steps = (layers.BatchNormalization() for _ in range(2))
    inner = normalization_only()
    in_steps = layers.Reshape((2, 2))(inputs)
    outputs = [
        layer(inputs),
        layer(2 * inputs + 1),
        inner(inner(inputs)),
        layers.TimeDistributed(of_time_steps)(in_steps),
    ]
    update(keras.Model(inputs, outputs))
    x = X.astype("float64")
    rows = numpy.concatenate([x, 2 * x + 1])
    assert error(statistics(layer), [rows.mean(0), rows.var(0)]) < 1e-6
    rows = batches(x)
    rows += [(r - r.mean(0)) / (r.var(0) + 1e-3) ** 0.5 for r in rows]
    rows = numpy.concatenate(rows)
    assert error(statistics(inner), [rows.mean(0), rows.var(0)]) < 1e-6
    rows = x.reshape(-1, 2)
    assert error(statistics(of_time_steps), [rows.mean(0), rows.var(0)]) < 1e-6


def test_masked_elements_are_not_counted():
    model = keras.Sequential(
        [keras.Input((6, 2)), layers.Masking(), layers.BatchNormalization()]
    )
    x = RNG.normal(size=(70, 6, 2)).astype("float32")
    x[TOKENS == 0] = 0
    x[16:32] = 0  # a whole batch
    update(model, x)
    rows = x.astype("float64")[x.any(axis=-1)]
    assert error(statistics(model), [rows.mean(0), rows.var(0)]) < 1e-6


def test_all_statistics_of_renormalization_are_measured():
    if "renorm" not in layers.BatchNormalization().get_config():
        pytest.skip("this Keras has no renormalization")
    model = normalization_only(renorm=True)
    layer = model.layers[0]
    for variable in layer.non_trainable_variables:
        variable.assign(ops.full(variable.shape, numpy.nan))
    update(model)
    rows = X.astype("float64")
    assert error(statistics(model), [rows.mean(0), rows.var(0)]) < 1e-6
    assert equal(
        [ops.convert_to_numpy(layer.renorm_mean)], statistics(model)[:1]
    )
    stddev = (rows.var(0) + 1e-3) ** 0.5
    for variable in (layer.moving_stddev, layer.renorm_stddev):
        stored = ops.convert_to_numpy(variable)
        assert numpy.allclose(stored, stddev, rtol=1e-6)


# What does not change


def trained():
    model = deep()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    fit(model)
    return model


def fit(model, *callbacks, **options):
    """Train on full batches: another size would be compiled again."""
    return model.fit(
        *FULL_BATCHES,
        batch_size=16,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
        **options,
    )


@pytest.fixture(scope="module")
def trained_net():
    """A trained model, which several tests share."""
    return Measured(trained())


def copy_of_trained(model):
    """A new model with all variables of a trained one."""
    other = trained()
    for variable, value in zip(all_variables(other), state(model), strict=True):
        variable.assign(value)
    return other


def state(model):
    return [ops.convert_to_numpy(v) for v in all_variables(model)]


def settings(model):
    return [
        (id(layer), layer.trainable, layer.built, sorted(vars(layer)))
        for layer in model._flatten_layers(include_self=False)
    ]


def test_only_the_statistics_change(trained_net):
    model = trained_net.model
    before, layout = other_values(model), settings(model)
    variables, function = [*map(id, model.variables)], model.train_function
    update(model, FULL_BATCHES)
    assert equal(other_values(model), before)
    assert settings(model) == layout
    assert [*map(id, model.variables)] == variables
    assert model.train_function is function
    for layer in normalizations(model):
        assert "call" not in vars(layer)
        assert isinstance(layer.moving_mean, keras.Variable)


def test_training_continues_as_after_assigning_the_statistics(trained_net):
    model, by_hand = trained_net.model, copy_of_trained(trained_net.model)
    assert equal(state(model), state(by_hand))
    update(model, FULL_BATCHES)
    for variable, value in zip(
        [
            v
            for layer in normalizations(by_hand)
            for v in (layer.moving_mean, layer.moving_variance)
        ],
        statistics(model),
        strict=True,
    ):
        variable.assign(value)
    first, second = fit(model), fit(by_hand)
    assert first.history == second.history
    assert equal(state(model), state(by_hand))


def test_a_second_pass_gives_bitwise_equal_statistics(trained_net):
    first = trained_net.statistics(FULL_BATCHES)
    assert equal(trained_net.statistics(FULL_BATCHES), first)


class Inside(keras.callbacks.Callback):
    """Measures in some hooks of `fit`."""

    def __init__(self, *places, model=None):
        super().__init__()
        self.places = places
        self.closed_over = model
        self.seen = []

    def measure(self, place):
        if place not in self.places:
            return
        update(self.closed_over or self.model, FULL_BATCHES)
        weights = self.model.trainable_variables
        values = [ops.convert_to_numpy(variable) for variable in weights]
        self.seen.append((values, statistics(self.model)))

    def on_train_batch_end(self, batch, logs=None):
        self.measure(batch)

    def on_test_begin(self, logs=None):
        self.measure("validation")

    def on_train_end(self, logs=None):
        self.measure("end")


def test_update_bn_can_be_called_in_the_hooks_of_fit(trained_net):
    model, alone = trained_net.model, copy_of_trained(trained_net.model)
    inside = Inside(1, "end")
    # The JAX trainer keeps the weights elsewhere until `self.model` is read.
    closed_over = Inside(0, "validation", model=model)
    fit(model, closed_over, inside, validation_data=(X[:16], Y[:16]))
    fit(alone)
    metrics = len(model.metrics_variables)
    assert equal(other_values(model)[:-metrics], other_values(alone)[:-metrics])
    assert equal(statistics(model), inside.seen[-1][1])
    fresh = Measured(deep())
    for weights, received in closed_over.seen + inside.seen:
        for variable, value in zip(
            fresh.model.trainable_variables, weights, strict=True
        ):
            variable.assign(value)
        assert error(received, fresh.statistics(FULL_BATCHES)) < 1e-6
    assert len(closed_over.seen) == len(inside.seen) == 2


# Repeated measurements


class Counting(Blocks):
    """Counts how often Python runs it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, inputs):
        self.calls.append(1)
        return super().call(inputs)


def test_a_measurement_is_compiled_once():
    model = Counting()
    model(X[:2])
    measurement = Measurement(model)
    measurement.update(X[:64], batch_size=16, verbose=0)
    traced = len(model.calls)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1)
    measurement.update(X[:64], batch_size=16, verbose=0)
    assert (len(model.calls) > traced) == (backend == "torch")
    received = statistics(model)
    update(model, X[:64])
    assert equal(statistics(model), received)


def test_a_measurement_works_after_an_error():
    net = Measured(deep())
    for data in (X[:, :3], fails_at(3, KeyError("no such batch"))):
        with pytest.raises(Exception, match=r"must accept|no such batch"):
            net.update(data, batch_size=None)
    assert error(net.statistics(), naive(net.model)) < 1e-6


def test_a_measurement_is_of_one_model_and_its_trainable_layers():
    model, other = nested(), nested()
    measurement = Measurement(model)
    assert measurement.is_of(model)
    assert not measurement.is_of(other)
    names = [variable.path for variable in measurement.variables]
    assert len(names) == 6
    assert all("moving_" in name for name in names)
    normalizations(model)[0].trainable = False
    assert not measurement.is_of(model)
    assert len(Measurement(model).variables) == 4


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {}], ids=str)
def test_a_measurement_is_outdated_after_the_model_is_compiled(options):
    model = nested()
    measurement = Measurement(model)
    model.compile("sgd", "mse", **options)
    assert not measurement.is_of(model)


# Errors


def fails_at(index, exception):
    for i, batch in enumerate(batches((X, Y))):
        if i == index:
            raise exception
        yield batch


@pytest.mark.parametrize("index", [0, 2])
def test_an_error_of_the_data_does_not_change_the_model(trained_net, index):
    model = trained_net.model
    before = state(model)
    data = fails_at(index, KeyError("no such batch"))
    with pytest.raises(Exception, match="no such batch") as caught:
        trained_net.update(data, batch_size=None)
    # TensorFlow converts errors of a generator after its first batch.
    assert backend == "tensorflow" or caught.type is KeyError
    assert equal(state(model), before)
    assert numpy.isfinite(fit(model).history["loss"]).all()


@pytest.mark.parametrize("where", ["on_predict_batch_end", "assign"])
def test_an_interrupt_does_not_change_the_model(
    trained_net, where, monkeypatch
):
    model = trained_net.model
    before = state(model)
    target = normalizations(model)[1].moving_variance
    if where != "assign":
        target = batchnorm.measurement._RequireBatches
    original = getattr(target, where)

    def interrupt(*_, **__):
        monkeypatch.setattr(target, where, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained_net.update(FULL_BATCHES)
    assert equal(state(model), before)
    assert numpy.isfinite(fit(model).history["loss"]).all()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X[:0], {}, "`data` must have at least one batch. Received: 0"),
        (X, {"steps": 0}, ">= 1. Received: steps=0"),
        (
            X,
            {"steps": 2.5},
            "`steps` must be an integer >= 1. Received: steps=2.5",
        ),
        (X, {"variance": "b"}, "`variance` must be .* Received: variance='b'"),
        (X, {"variance": None}, "`variance` must be .* variance=None"),
        (X[:, :3], {}, r"must accept the batches .* shape \(16, 3\)"),
        ({"a": X, "b": X}, {}, r"must accept .* \{'a': \(16, 4\), 'b'"),
        (X[:17], {"variance": "batch_mean"}, "at least two elements"),
        (X * numpy.inf, {}, "'.*moving_mean' must be finite in float32"),
        ((X, Y, Y, Y), {}, "expected to be in format"),
    ],
    ids=range(10),
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_invalid_input_is_refused_and_does_not_change_the_model(
    net, data, options, message
):
    before = state(net.model)
    with pytest.raises(ValueError, match=message):
        update(net.model, data, **options)
    assert equal(state(net.model), before)


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("kind", ["generator", "py_dataset", "native"])
def test_too_few_batches_are_refused(net, kind, length):
    class Short(Batches):
        def __len__(self):
            return length

    data = {
        "generator": lambda: (b for b in batches((X, Y))[:length]),
        "py_dataset": Short,
        "native": lambda: native(length),
    }[kind]()
    before = state(net.model)
    error, message = ValueError, r"at least|length 0|empty"
    if keras.__version__ < "3.15" and isinstance(data, Iterator) and not length:
        # Keras reads the first batch itself, and fails.
        error, message = IndexError, "list index out of range"
    with pytest.raises(error, match=message):
        net.update(data, steps=4, batch_size=None)
    assert equal(state(net.model), before)


def native(length):
    if backend == "tensorflow":
        return tf_data().take(length)
    if backend == "torch":
        import torch

        return torch.utils.data.DataLoader(batches(X)[:length], batch_size=None)
    return (batch for batch in batches((X, Y))[:length])


def test_the_error_names_a_layer_that_no_data_reaches():
    class Detour(Blocks):
        def call(self, inputs, around=False):
            return inputs if around else super().call(inputs)

    class Partly(keras.Model):
        def __init__(self):
            super().__init__()
            self.normal = layers.BatchNormalization()
            self.detour = Detour()

        def call(self, inputs, around=True):
            return self.detour(self.normal(inputs), around=around)

    model = Partly()
    model(X[:2], around=False)
    before = state(model)
    with pytest.raises(ValueError, match=r"must reach the layer '.*detour"):
        update(model)
    assert equal(state(model), before)
    model.detour.trainable = False
    update(model)
    rows = X.astype("float64")
    received = model.normal.moving_mean, model.normal.moving_variance
    received = [ops.convert_to_numpy(variable) for variable in received]
    assert error(received, [rows.mean(0), rows.var(0)]) < 1e-6


def frozen():
    model = deep()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: "model", r"must be a built Keras model.* model='model'"),
        (layers.BatchNormalization, "must be a built Keras model"),
        (Blocks, r"must be a built Keras model.*model.build"),
        (
            lambda: keras.Sequential([layers.BatchNormalization()]),
            "must be a built Keras model",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), dense()]),
            "must have a trainable `BatchNormalization`",
        ),
        (frozen, "must have a trainable `BatchNormalization`"),
    ],
    ids=range(6),
)
def test_a_model_that_cannot_be_measured_is_refused_before_data_is_read(
    build, message
):
    def unread():
        pytest.fail("data was read")
        yield

    with pytest.raises(ValueError, match=message):
        update_bn(build(), unread())


def test_a_layer_that_was_never_built_is_refused():
    class Spare(Blocks):
        def __init__(self):
            super().__init__()
            self.spare = layers.BatchNormalization()

    model = Spare()
    model(X[:2])
    with pytest.raises(ValueError, match="must be a built Keras model"):
        update(model)


# Several devices


@on_tensorflow
@pytest.mark.parametrize("synchronized", [False, True])
def test_the_statistics_on_replicas_equal_those_on_one_device(synchronized):
    """Later layers must be synchronized: a replica has half of a batch."""
    import tensorflow as tf

    def build():
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.BatchNormalization(synchronized=synchronized),
                layers.Dense(3, "relu", kernel_initializer="ones"),
                layers.BatchNormalization(synchronized=synchronized),
            ]
        )

    # TensorFlow numbers collective operations separately for each strategy,
    # and would confuse those of two models in one process.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        model = build()
    # The last batch has one sample: a replica gets none.
    alone = build()
    update(model, X[:65])
    update(alone, X[:65])
    same = 4 if synchronized else 2
    assert error(statistics(model)[:same], statistics(alone)[:same]) < 1e-6
    for layer in normalizations(model):
        first, second = (v.numpy() for v in layer.moving_mean.value.values)
        assert equal([first], [second])


@on_tensorflow
def test_synchronized_makes_no_difference_on_one_device(plain):
    model = normalization_only(synchronized=True)
    update(model)
    assert equal(statistics(model), plain.statistics())


@on_jax
def test_the_statistics_of_sharded_batches_equal_those_on_one_device(net):
    expected = net.statistics(X[:64])
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=keras.distribution.list_devices()
        )
    )
    try:
        model = deep()
        model.compile("sgd", "mse")
        model.fit(X[:64], Y[:64], verbose=0)
        model.set_weights(net.model.get_weights())
        shardings = [v.value.sharding for v in model.variables]
        update(model, X[:64])
        assert [v.value.sharding for v in model.variables] == shardings
        assert error(statistics(model), expected) < 1e-6
        model.fit(X[:64], Y[:64], verbose=0)
    finally:
        keras.distribution.set_distribution(None)
