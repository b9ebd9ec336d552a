"""EMA through `model.fit`, against the definition in float64."""

from typing import Any, NamedTuple

import keras
import models
import numpy
import probe
import pytest
import reference
from models import Samples, Steps, compiled, data, equal

from keras_wavg import EMA, LAWA, SWAG

LIMIT = 1e-6


def fit(model, *callbacks, epochs=5, **options):
    x, y = data()
    options = {"batch_size": models.BATCH, "verbose": 0} | options
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def assert_average(ema, samples, **options):
    """Compare with the definition, which begins where the average does."""
    if not ema.bias_correction:
        before = [samples.initial, *samples.weights][ema.start]
        options.setdefault("initial", before)
    expected = reference.ema(
        samples.weights,
        ema.decay,
        every=ema.every,
        start=ema.start,
        warmup=ema.warmup,
        **options,
    )
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


# `dense` and `batch_norm` are averaged in the next tests.
@pytest.mark.parametrize("kind", ["nested", "shared", "subclassed", "lazy"])
def test_models_of_every_kind_are_averaged_as_defined(kind):
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.KINDS[kind]()), samples, ema)
    assert len(samples.weights) == 50
    assert_average(ema, samples)


def averages_of_every_kind():
    """Each with and without bias correction, and one to swap in."""
    yield EMA(half_life=10)
    for decay, warmup, every, start in [
        (0.9, True, 1, 0),
        (0.99999, True, 4, 17),
        (0.0, False, 7, 0),
        # The end of an epoch: the average above is in the model by then, and
        # a textbook average is to begin with the raw weights beneath it.
        (0.9, False, 1, 10),
    ]:
        for bias_correction in (False, True):
            yield EMA(
                decay,
                warmup=warmup,
                every=every,
                start=start,
                bias_correction=bias_correction,
                swap=False,
                name=f"every-{every}-from-{start}-{bias_correction}",
            )


def test_averages_of_every_kind_ride_along_in_one_fit_as_defined():
    samples, averages = Samples(), [*averages_of_every_kind()]
    fit(compiled(models.dense()), samples, *averages)
    for ema in averages:
        assert_average(ema, samples)


def test_half_life_is_another_way_to_say_decay():
    assert EMA(half_life=10).decay == pytest.approx(0.5**0.1)


def test_warm_up_without_bias_correction_is_the_one_of_tensorflow():
    """`tf.train.ExponentialMovingAverage(.25, num_updates=1)` keeps 2/11."""
    model = compiled(models.dense())
    ema = EMA(0.25, warmup=True, bias_correction=False)
    ema.set_model(model)
    first = model.get_weights()
    model.set_weights([w + 1 for w in first])
    ema.update()
    expected = [w + 1 - 2 / 11 for w in first]
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


# What a CPU does by default is one of these on JAX, and neither elsewhere.
@pytest.mark.parametrize("option", ["run_eagerly", "jit_compile"])
def test_averages_are_the_same_however_the_step_is_compiled(option):
    if option == "jit_compile" and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.nested(), **{option: True}), samples, ema, epochs=2)
    assert_average(ema, samples)


def batch_norm_and_count():
    """A model that has an integer among its weights."""
    model = models.batch_norm()
    model.add_weight((), "ones", dtype="int32", trainable=False, name="count")
    return compiled(model)


def train(*callbacks):
    """The trained model, and the losses of its epochs."""
    model = batch_norm_and_count()
    history = fit(model, *callbacks, epochs=3, validation_split=0.2).history
    return model, history["loss"]


class Trained(NamedTuple):
    model: Any
    losses: list[float]
    samples: Samples
    swapped: EMA
    kernels: EMA


@pytest.fixture(scope="module")
def trained():
    """One training with three averages, all of them out of the model again."""
    samples, swapped = Samples(), EMA(0.97)
    kernels = EMA(0.97, include=r"kernel$", swap=False, name="kernels")
    textbook = EMA(
        0.97, every=3, start=4, bias_correction=False, swap=False, name="late"
    )
    model, losses = train(samples, swapped, kernels, textbook)
    swapped.restore()
    return Trained(model, losses, samples, swapped, kernels)


def test_moving_statistics_are_averaged_as_defined(trained):
    assert_average(trained.swapped, trained.samples)


def test_training_is_that_of_fit_without_the_averages(trained):
    samples = Samples()
    model, losses = train(samples)
    assert trained.losses == losses
    assert trained.samples.losses == samples.losses
    assert equal(trained.samples.weights[-1], samples.weights[-1])
    assert equal(trained.model.get_weights(), model.get_weights())


def test_training_is_the_same_without_a_batch_hook_beside_ours(trained):
    """Keras dispatches its own hooks otherwise when nobody has a batch hook."""
    ema = EMA(0.97, include=lambda path: "kernel" in path)
    model, losses = train(ema)
    assert losses == trained.losses
    # `include` may be a function of the path.
    assert equal(ema.get_weights(), trained.kernels.get_weights())
    assert equal(model.get_weights(), ema.get_weights())


def test_what_is_not_included_stays_raw(trained):
    averaged = reference.ema(trained.samples.weights, 0.97)
    for weight, received, average, raw in zip(
        trained.model.weights,
        trained.kernels.get_weights(),
        averaged,
        trained.samples.weights[-1],
        strict=True,
    ):
        if weight.path.endswith("kernel"):
            assert received == pytest.approx(average, rel=1e-5, abs=1e-7)
        else:
            assert numpy.array_equal(received, raw)


def test_the_averaged_model_is_made_of_get_weights(trained):
    x, y = data()
    with trained.swapped.applied():
        expected = trained.model.evaluate(x, y, verbose=0)
    other = batch_norm_and_count()
    other.set_weights(trained.swapped.get_weights())
    assert other.evaluate(x, y, verbose=0) == expected


def test_random_seeds_and_integers_are_not_averaged(trained):
    received = trained.swapped.get_weights()
    assert len(received) == len(trained.model.weights)
    assert [w.dtype.kind for w in received].count("i") == 1


def test_a_long_run_from_known_weights_agrees_on_every_backend():
    """The weights are given, so every backend averages the same numbers.

    Each is within 5e-7 of float64, so any two are within 1e-6 of each other.
    """
    rng = numpy.random.default_rng(3)
    model = compiled(models.batch_norm())
    shapes = [w.shape for w in model.get_weights()]
    walk = [[rng.normal(size=s).astype("float32") for s in shapes]]
    for _ in range(49):
        walk.append(
            [
                w + rng.normal(scale=0.1, size=w.shape).astype("float32")
                for w in walk[-1]
            ]
        )
    ema = EMA(0.97)
    ema.set_model(model)
    for weights in walk:
        model.set_weights(weights)
        ema.update()
    expected = reference.ema(walk, 0.97)
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT / 2


def test_half_precision_weights_are_averaged_in_float32():
    """bfloat16 from 1.0 towards 2.0: an average in bfloat16 would stay at 1."""
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    ema = EMA(0.999, bias_correction=False)
    model.set_weights([numpy.ones((1, 1)), numpy.ones(1)])
    ema.set_model(model)
    model.set_weights([numpy.full((1, 1), 2.0), numpy.full(1, 2.0)])
    for _ in range(500):
        ema.update()
    for average in ema.get_weights():
        assert average.dtype == "float32"
        assert average == pytest.approx(2 - 0.999**500, abs=1e-3)


@pytest.fixture
def dtype_policy(request):
    """Set for a test, and for no fixture of the next one."""
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "dtype_policy", ["mixed_float16", "bfloat16", "float64"], indirect=True
)
def test_every_dtype_policy_is_averaged_as_defined(dtype_policy):
    if dtype_policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where jax_enable_x64 is set")
    # float16 training skips the steps whose gradients overflow.
    steps, samples, ema = Steps(), Samples(), EMA(0.97)
    means = [LAWA(2, swap=False), SWAG(swap=False)]
    model = compiled(models.nested(), keras.optimizers.SGD(0.01))
    fit(model, steps, samples, ema, *means, epochs=3)
    assert len(steps.weights) > 10
    assert_average(ema, steps)
    ends = samples.weights[9::10]
    for average, chosen in zip(means, [ends[-2:], ends], strict=True):
        expected = reference.mean(chosen)
        received = average.get_weights()
        assert reference.relative_error(received, expected) < LIMIT
    wide = numpy.dtype("float64" if dtype_policy == "float64" else "float32")
    for average in (ema, *means):
        floats = {w.dtype for w in average.get_weights() if w.dtype.kind == "f"}
        assert floats == {wide}
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_scales_of_float8_training_are_not_averaged():
    """No optimizer steps them, and each step makes them anew."""
    model, ema = models.dense(), EMA(0.9)
    model.quantize("float8")
    scales = [
        variable
        for variable in model.weights
        if getattr(variable, "overwrite_with_gradient", False)
    ]
    ema.set_model(model)
    ema.update()
    averaged = {id(variable) for variable in probe.variables(ema)}
    assert scales
    assert not averaged & {id(scale) for scale in scales}
    assert id(model.layers[0].kernel) in averaged


def test_layers_frozen_between_two_fits_stay_aligned():
    model, samples, ema = models.batch_norm(), Samples(), EMA(0.97)
    first, second = model.layers[:2]
    first.trainable = False
    frozen = first.get_weights()
    fit(compiled(model), samples, ema, epochs=2)
    assert equal(ema.get_weights()[:2], frozen)
    first.trainable, second.trainable = True, False
    fit(compiled(model), samples, ema, epochs=2)
    assert not equal(ema.get_weights()[:2], frozen)
    assert_average(ema, samples)


def test_loops_without_fit_are_averaged_as_defined():
    model = compiled(models.batch_norm())
    x, y = data(1)
    ema, walk = EMA(0.9, every=2), []
    ema.set_model(model)
    for _ in range(20):
        model.train_on_batch(x, y)
        ema.update()
        walk.append(model.get_weights())
    expected = reference.ema(walk, 0.9, every=2)
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT
    raw = model.get_weights()
    with ema.applied():
        inside = model.get_weights()
    assert reference.relative_error(inside, expected) < LIMIT
    assert equal(model.get_weights(), raw)
