"""On many devices, averages live where their weights do, and stay at home."""

import re

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
on_jax = pytest.mark.skipif(backend != "jax", reason="how JAX distributes")
on_tensorflow = pytest.mark.skipif(
    backend != "tensorflow", reason="how TensorFlow distributes"
)
X = models.data(6)[0]
METHODS = {
    "SWA": lambda: SWA(every_steps=3),
    "SWA with data": lambda: SWA(bn_data=X),
    "LAWA": lambda: LAWA(2, every_steps=3),
    "SWAG": lambda: SWAG(rank=2),
    "FGE": lambda: FGE(4),
}
OPTIONS = [{}, {"bias_correction": False}, {"every": 3}, {"device": "cpu"}]


def wide():
    """Sizes that eight devices can share."""
    keras.utils.set_random_seed(1)
    return compiled(
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(32, activation="tanh", name="wide"),
                keras.layers.BatchNormalization(name="wide_normal"),
                keras.layers.Dense(1),
            ]
        )
    )


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


@pytest.fixture(params=[data_parallel, model_parallel], ids=["data", "model"])
def distributed(request):
    keras.distribution.set_distribution(request.param())
    yield request.param
    keras.distribution.set_distribution(None)


@on_jax
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sharded_averages_are_those_of_one_device(distributed, options):
    model, ema, samples = wide(), EMA(0.9, **options), models.Samples()
    fit(model, samples, ema)
    received = ema.get_weights()
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])
    expected = reference.ema(
        samples.weights,
        0.9,
        every=ema.every,
        initial=None if ema.bias_correction else samples.initial,
    )
    assert reference.relative_error(received, expected) < 1e-6
    keras.distribution.set_distribution(None)
    single, alone = wide(), EMA(0.9, **options)
    fit(single, alone)
    assert reference.relative_error(received, alone.get_weights()) < 1e-5


@on_jax
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_averages_are_sharded_as_their_weights_are(distributed, options):
    ema = EMA(0.9, **options)
    fit(wide(), ema)
    for variable, array in probe.stored(ema):
        assert array.sharding == variable.value.sharding
        assert len(array.devices()) == 8
    split = [
        v for v, _ in probe.stored(ema) if "model" in v.value.sharding.spec
    ]
    assert len(split) == (6 if distributed is model_parallel else 0)


@on_jax
@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_run_of_each_method_goes_on_from_its_file(
    distributed, method, tmp_path
):
    model, average, samples = wide(), METHODS[method](), models.Samples()
    fit(model, samples, average)
    if method == "SWAG":
        average.predict(X, samples=2, verbose=0)
    assert_laid_out_as(model, wide())
    model.save_weights(tmp_path / "a.weights.h5")
    other, again = wide(), METHODS[method]()
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    assert_same_now_and_later(model, average, other, again)
    assert_laid_out_as(other, wide())


def assert_laid_out_as(model, other):
    for one, two in zip(model.weights, other.weights, strict=True):
        first, second = one.value.sharding, two.value.sharding
        assert first.is_equivalent_to(second, len(one.shape))


@on_jax
def test_an_update_moves_no_weight_between_devices(distributed):
    """One number is agreed on: whether all weights are finite."""
    model, ema = wide(), EMA(0.9)
    fit(model, ema)
    program = probe.program(ema)
    assert not re.search("all-gather|all-to-all|collective|scatter", program)
    reduced = re.findall(r"= (.*) all-reduce\(", program)
    assert len(reduced) == (1 if distributed is model_parallel else 0)
    assert set(re.findall(r"f32\[(.*?)\]", "".join(reduced))) <= {""}


@on_jax
def test_moving_a_weight_between_devices_would_be_found(distributed):
    import jax

    model, ema = wide(), EMA(0.9)
    fit(model, ema)
    gathered = jax.jit(
        lambda w: w * 2,
        out_shardings=jax.sharding.NamedSharding(
            model.weights[0].value.sharding.mesh,
            jax.sharding.PartitionSpec(),
        ),
    )
    program = gathered.lower(model.weights[0].value).compile().as_text()
    found = re.search("all-gather", program) is not None
    assert found == (distributed is model_parallel)


@on_jax
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_sharded_run_goes_on_from_its_file(distributed, options, tmp_path):
    model, ema = wide(), EMA(0.9, **options)
    fit(model, ema)
    model.save_weights(tmp_path / "a.weights.h5")
    other, again = wide(), EMA(0.9, **options)
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    if "device" not in options:
        for variable, array in probe.stored(again):
            assert array.sharding == variable.value.sharding
    assert_same_now_and_later(model, ema, other, again)


def assert_same_now_and_later(model, ema, other, again):
    assert equal(other.get_weights(), model.get_weights())
    assert equal(again.get_weights(), ema.get_weights())
    for one in (ema, again):
        one.restore()
    assert equal(other.get_weights(), model.get_weights())
    fit(model, ema)
    fit(other, again)
    # Sums over eight threads are not the same to the last bit each time.
    expected = ema.get_weights()
    assert reference.relative_error(again.get_weights(), expected) < 1e-5
    assert probe.counts(again) == probe.counts(ema)


@on_jax
def test_an_orbax_checkpoint_of_a_sharded_run_is_gone_on_from(
    distributed, tmp_path
):
    model, ema = wide(), EMA(0.9)
    checkpoint = keras.callbacks.OrbaxCheckpoint(tmp_path / "orbax")
    fit(model, ema, checkpoint)
    checkpoint.wait_until_finished()
    keras.utils.clear_session()
    other, again = wide(), EMA(0.9)
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(tmp_path / "orbax")
    assert_same_now_and_later(model, ema, other, again)


# TensorFlow


def mirrored():
    """A strategy, and a model on its two replicas."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        return strategy, wide()


def replicas(model):
    """The weights of each replica."""
    values = [variable.value.values for variable in model.weights]
    return [[v[i].numpy() for v in values] for i in range(2)]


@on_tensorflow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mirrored_averages_are_as_defined(options):
    _, model = mirrored()
    ema, samples = EMA(0.9, **options), models.Samples()
    fit(model, samples, ema)
    expected = reference.ema(
        samples.weights,
        0.9,
        every=ema.every,
        initial=None if ema.bias_correction else samples.initial,
    )
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6
    averaged = replicas(model)
    assert equal(*averaged)
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])
    assert equal(*replicas(model))


@on_tensorflow
@pytest.mark.parametrize("method", ["SWA with data", "SWAG", "FGE"])
def test_a_mirrored_run_of_each_method_goes_on_from_its_file(method, tmp_path):
    _, model = mirrored()
    average, samples = METHODS[method](), models.Samples()
    fit(model, samples, average)
    if method == "SWAG":
        average.predict(X, samples=2, verbose=0)
    if method != "FGE":
        assert equal(*replicas(model))
    model.save_weights(tmp_path / "a.weights.h5")
    strategy, other = mirrored()
    with strategy.scope():
        other.optimizer.build(other.trainable_variables)
    again = METHODS[method]()
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    assert_same_now_and_later(model, average, other, again)


@on_tensorflow
def test_a_mirrored_run_is_the_same_with_an_evaluator():
    validation, histories, weights = models.data(2, seed=1), [], []
    for evaluated in (False, True):
        # All models here have the same shapes: TensorFlow numbers the sums
        # over replicas anew for each, and takes them for the same ones.
        _, model = mirrored()
        ema, samples = EMA(0.8), models.Samples()
        evaluator = AverageEvaluator(*validation, averages=[ema])
        extra = [evaluator] if evaluated else []
        x, y = models.data(6)
        options = {"validation_data": validation, "shuffle": False}
        history = model.fit(
            x, y, verbose=0, callbacks=[ema, samples, *extra], **options
        )
        histories.append(history.history)
        weights.append([samples.weights[-1], *replicas(model)])
    assert histories[0].items() <= histories[1].items()
    assert all(map(equal, *weights))
    assert histories[1]["ema_val_loss"] == pytest.approx(
        histories[1]["val_loss"], rel=1e-6
    )


@on_tensorflow
def test_each_replica_has_moving_statistics_of_its_own_between_swaps():
    """The average is of the first replica's, as Keras' own files are."""
    _, model = mirrored()
    fit(model, epochs=1)
    differs = {
        variable.path.split("/")[-1]
        for variable, first, second in zip(
            model.weights, *replicas(model), strict=True
        )
        if not numpy.array_equal(first, second)
    }
    assert differs == {"moving_mean", "moving_variance"}
    _, averaged = mirrored()
    ema = EMA(0.9)
    fit(averaged, ema, epochs=1)
    ema.restore()
    assert equal(averaged.get_weights(), replicas(model)[0])


@on_tensorflow
def test_a_mirrored_run_goes_on_from_its_file(tmp_path):
    _, model = mirrored()
    ema = EMA(0.9)
    fit(model, ema)
    model.save_weights(tmp_path / "a.weights.h5")
    strategy, other = mirrored()
    with strategy.scope():
        other.optimizer.build(other.trainable_variables)
    again = EMA(0.9)
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    assert_same_now_and_later(model, ema, other, again)
