"""Averages on several devices are stored where their weights are.

A model is trained once for each layout, with an average for each method and
option. The tests examine the result, and continue from its files.
"""

import contextlib
import copy
import re
from types import SimpleNamespace

import keras
import models
import numpy
import probe
import pytest
import reference
from models import compiled, equal
from models import fit_and_validate as fit

from keras_wavg import EMA, FGE, LAWA, SWA, SWAG, AverageEvaluator

backend = keras.config.backend()
on_jax = pytest.mark.skipif(backend != "jax", reason="specific to JAX")
on_tensorflow = pytest.mark.skipif(
    backend != "tensorflow", reason="specific to TensorFlow"
)
X = models.data(6)[0]
OPTIONS = {
    "ema": {},
    "textbook": {"bias_correction": False},
    "every": {"every_steps": 3},
    "host": {"device": "cpu"},
}


def wide():
    """A model with named layers and dimensions that eight devices can share."""
    keras.utils.set_random_seed(1)
    return compiled(
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(32, activation="tanh", name="wide"),
                keras.layers.BatchNormalization(name="wide_normal"),
                keras.layers.Dense(1, name="out"),
            ],
            name="wide",
        )
    )


def new():
    """A model that is ready to load a file."""
    model = wide()
    model.optimizer.build(model.trainable_variables)
    return model


def each_average():
    """An average for each method and option; the last is swapped in."""
    emas = [
        EMA(0.9, swap=False, name=name, **options)
        for name, options in OPTIONS.items()
    ]
    others = [
        SWA(every_steps=3, swap=False, name="swa"),
        LAWA(2, every_steps=3, swap=False, name="lawa"),
        SWAG(rank=2, swap=False, name="swag"),
        FGE(4),
        SWA(batch_norm_data=X, name="measured"),
    ]
    return {average.name: average for average in (*emas, *others)}


def fit_all(model, averages, *callbacks, epochs):
    """Train, with `callbacks` called before the last average is swapped in."""
    *others, swapped = averages.values()
    fit(model, *others, *callbacks, swapped, epochs=epochs)


def all_weights(averages):
    return {name: each.get_weights() for name, each in averages.items()}


def all_counts(averages):
    return {name: probe.counts(each) for name, each in averages.items()}


def train(model, *callbacks):
    """Train a model, and return its weights and averages."""
    averages, samples = each_average(), models.Samples()
    fit_all(model, averages, samples, *callbacks, epochs=2)
    shown = model.get_weights()
    received = all_weights(averages)
    averages["measured"].restore()
    raw = model.get_weights()
    averages["measured"].apply()
    return SimpleNamespace(
        model=model,
        averages=averages,
        samples=samples,
        shown=shown,
        received=received,
        raw=raw,
    )


def save(run, path):
    """Save a run while another average is swapped in."""
    with run.averages["host"].applied():
        run.nested = run.model.get_weights()
        run.model.save_weights(path)
    run.file = path


def train_another_epoch(model, averages, *callbacks):
    """Train another epoch, and return the weights, counts and history."""
    averages["measured"].restore()
    fit_all(model, averages, *callbacks, epochs=1)
    return SimpleNamespace(
        received=all_weights(averages),
        counts=all_counts(averages),
        shown=model.get_weights(),
        history=model.history.history,
    )


def loaded(model, path):
    """Load a file with new averages, as in a new process."""
    averages = each_average()
    for average in averages.values():
        average.set_model(model)
    model.load_weights(path)
    return averages


def assert_same_now(run, model, averages):
    assert equal(model.get_weights(), run.shown)
    for name, received in all_weights(averages).items():
        assert equal(received, run.received[name]), name
    averages["measured"].restore()
    assert equal(model.get_weights(), run.raw)
    averages["measured"].apply()


def assert_same_later(received, expected):
    # Sums over eight threads are not bitwise reproducible.
    assert_near(received.received, expected.received)
    assert received.counts == expected.counts


def assert_near(received, expected):
    for name, weights in expected.items():
        error = reference.relative_error(received[name], weights)
        assert error < 1e-5, name


def assert_equal_to_definition(run):
    for name in OPTIONS:
        ema = run.averages[name]
        expected = reference.ema(
            run.samples.weights,
            0.9,
            every=ema.every_steps,
            initial=None if ema.bias_correction else run.samples.initial,
        )
        error = reference.relative_error(run.received[name], expected)
        assert error < 1e-6, name


# JAX


def data_parallel():
    return keras.distribution.DataParallel(
        devices=keras.distribution.list_devices()
    )


def model_parallel():
    mesh = keras.distribution.DeviceMesh(
        (2, 4), ("batch", "model"), keras.distribution.list_devices()
    )
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*wide/kernel"] = (None, "model")
    layout[".*wide(/bias|_normal/.*)"] = ("model",)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )


@contextlib.contextmanager
def distributed(layout):
    """Context in which Keras distributes models over the devices."""
    keras.distribution.set_distribution(layout())
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


@pytest.fixture(
    scope="module",
    params=[data_parallel, model_parallel],
    ids=["data", "model"],
)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def alone():
    """A run on one device."""
    return train(wide())


@pytest.fixture(scope="module")
def sharded(layout, tmp_path_factory):
    """A run on eight devices, its files, and another epoch of it."""
    directory = tmp_path_factory.mktemp("sharded")
    with distributed(layout):
        orbax = keras.callbacks.OrbaxCheckpoint(directory / "orbax")
        run = train(wide(), orbax)
        orbax.wait_until_finished()
        run.orbax = directory / "orbax"
        run.averages["swag"].predict(X, samples=2, verbose=0)
        run.shardings = [weight.value.sharding for weight in wide().weights]
        assert_sharded_like_a_new_model(run.model, run)
        save(run, directory / "a.weights.h5")
        run.later = train_another_epoch(run.model, run.averages)
    return run


def assert_sharded_like_a_new_model(model, run):
    """Check that each weight is sharded as in a new model."""
    for weight, sharding in zip(model.weights, run.shardings, strict=True):
        assert weight.value.sharding.is_equivalent_to(
            sharding, len(weight.shape)
        )
        assert len(weight.value.devices()) == 8


def assert_averages_sharded_like_their_weights(averages):
    for name in set(OPTIONS) - {"host"}:
        for variable, array in probe.stored(averages[name]):
            sharding = variable.value.sharding
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
            assert len(array.devices()) == 8


def assert_continues(run, model, averages):
    """Check that a loaded run is equal, and continues as the saved one."""
    assert_sharded_like_a_new_model(model, run)
    assert_averages_sharded_like_their_weights(averages)
    assert_same_now(run, model, averages)
    assert_same_later(train_another_epoch(model, averages), run.later)
    assert_sharded_like_a_new_model(model, run)


@on_jax
def test_sharded_averages_equal_those_on_one_device(sharded, alone):
    assert_equal_to_definition(sharded)
    assert equal(sharded.raw, sharded.samples.weights[-1])
    assert_near(sharded.received, alone.received)


@on_jax
def test_averages_are_sharded_like_their_weights(layout, sharded):
    assert_averages_sharded_like_their_weights(sharded.averages)
    for name in set(OPTIONS) - {"host"}:
        split = [
            v
            for v, _ in probe.stored(sharded.averages[name])
            if "model" in v.value.sharding.spec
        ]
        assert len(split) == (6 if layout is model_parallel else 0)


@on_jax
def test_training_continues_from_the_file_of_a_sharded_model(layout, sharded):
    with distributed(layout):
        model = new()
        averages = loaded(model, sharded.file)
        assert equal(model.get_weights(), sharded.nested)
        averages["measured"].apply()
        assert_continues(sharded, model, averages)


@on_jax
def test_a_loaded_average_shares_no_memory_with_a_sharded_model(
    layout, sharded
):
    """JAX donates the arrays of the model to the next training step."""
    x, y = models.data(1)
    with distributed(layout):
        model = new()
        averages = loaded(model, sharded.file)
        before = all_weights(averages)
        for _ in range(2):
            model.train_on_batch(x, y)
        after = all_weights(averages)
    assert all(equal(after[name], before[name]) for name in before)


@on_jax
def test_an_orbax_checkpoint_is_loaded_without_a_distribution(layout, sharded):
    """Weights are sharded as they were saved, and averages as their weights.

    Keras trains a model only under the distribution that it was built under.
    """
    model = new()
    averages = loaded(model, sharded.orbax)
    assert_sharded_like_a_new_model(model, sharded)
    assert_averages_sharded_like_their_weights(averages)
    with distributed(layout):
        assert_same_now(sharded, model, averages)


@on_jax
def test_an_orbax_checkpoint_is_loaded_into_a_sharded_model(layout, sharded):
    with distributed(layout):
        model = new()
        assert_continues(sharded, model, loaded(model, sharded.orbax))


@on_jax
def test_an_update_moves_no_weight_between_devices(layout, sharded):
    program = probe.program(sharded.averages["ema"])
    moves = "all-gather|all-to-all|all-reduce|collective|scatter"
    assert not re.search(moves, program)


@on_jax
def test_moving_a_weight_between_devices_would_be_detected(layout, sharded):
    import jax

    weight = sharded.model.weights[0].value
    gathered = jax.jit(
        lambda w: w * 2,
        out_shardings=jax.sharding.NamedSharding(
            weight.sharding.mesh, jax.sharding.PartitionSpec()
        ),
    )
    program = gathered.lower(weight).compile().as_text()
    found = re.search("all-gather", program) is not None
    assert found == (layout is model_parallel)


# TensorFlow. All models have the same shapes: TensorFlow numbers the sums over
# replicas separately for each model, and would confuse those of other shapes.


def mirrored():
    """A model on two replicas."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        return new()


def replicas(model):
    """The weights of each replica."""
    values = [variable.value.values for variable in model.weights]
    return [[v[i].numpy() for v in values] for i in range(2)]


class Replicas(keras.callbacks.Callback):
    """Records the weights of each replica after the latest batch."""

    def on_train_batch_end(self, batch, logs=None):
        self.weights = replicas(self.model)


@pytest.fixture(scope="module")
def mirrored_run(tmp_path_factory):
    """A run on two replicas, its file, and another epoch of it."""
    each = Replicas()
    run = train(mirrored(), each)
    run.replicas = each.weights
    run.averages["swag"].predict(X, samples=2, verbose=0)
    run.replicas_shown = replicas(run.model)
    directory = tmp_path_factory.mktemp("mirrored")
    save(run, directory / "a.weights.h5")
    run.averages["measured"].restore()
    run.replicas_restored = replicas(run.model)
    run.replicas_applied = {}
    for name, average in run.averages.items():
        with average.applied():
            run.replicas_applied[name] = replicas(run.model)
    run.averages["measured"].apply()
    run.later = train_another_epoch(run.model, run.averages)
    run.later.replicas = replicas(run.model)
    return run


@pytest.fixture(scope="module")
def resumed(mirrored_run):
    """Another epoch from the file, with an evaluator that the run lacked."""
    model = mirrored()
    averages = loaded(model, mirrored_run.file)
    assert equal(model.get_weights(), mirrored_run.nested)
    averages["measured"].apply()
    assert_same_now(mirrored_run, model, averages)
    evaluator = AverageEvaluator(
        *models.data(2, seed=1), averages=[averages["measured"]]
    )
    later = train_another_epoch(model, averages, evaluator)
    later.replicas = replicas(model)
    return later


@on_tensorflow
def test_mirrored_averages_equal_their_definition(mirrored_run):
    assert_equal_to_definition(mirrored_run)
    assert equal(*mirrored_run.replicas_shown)
    assert equal(mirrored_run.raw, mirrored_run.samples.weights[-1])
    for name, received in mirrored_run.received.items():
        first, second = mirrored_run.replicas_applied[name]
        assert equal(first, second), name
        assert equal(first, received), name


@on_tensorflow
@pytest.mark.parametrize("average", [EMA(0.9), LAWA(2, every_steps=3)])
def test_a_fit_in_the_scope_of_its_strategy_has_the_same_average(average):
    found = []
    for is_inside in (False, True):
        model, averages = mirrored(), copy.deepcopy(average)
        with contextlib.ExitStack() as stack:
            if is_inside:
                stack.enter_context(model.distribute_strategy.scope())
            fit(model, averages, epochs=2)
        found.append(averages.get_weights())
    assert reference.relative_error(*found) < 1e-6


@on_tensorflow
def test_training_continues_from_the_file_of_a_mirrored_model(
    mirrored_run, resumed
):
    assert_same_later(resumed, mirrored_run.later)


@on_tensorflow
def test_an_evaluator_does_not_change_mirrored_training(mirrored_run, resumed):
    expected, received = mirrored_run.later, resumed
    assert expected.history.items() <= received.history.items()
    assert equal(received.shown, expected.shown)
    assert all(map(equal, received.replicas, expected.replicas))
    assert received.history["measured_val_loss"] == pytest.approx(
        received.history["val_loss"], rel=1e-6
    )


@on_tensorflow
def test_replicas_have_different_moving_statistics_between_swaps(
    mirrored_run,
):
    """The average uses those of the first replica, as files of Keras do."""
    first, second = mirrored_run.replicas
    differs = {
        variable.path.split("/")[-1]
        for variable, one, two in zip(
            mirrored_run.model.weights, first, second, strict=True
        )
        if not numpy.array_equal(one, two)
    }
    assert differs == {"moving_mean", "moving_variance"}
    assert equal(mirrored_run.raw, first)
    assert all(equal(r, first) for r in mirrored_run.replicas_restored)
