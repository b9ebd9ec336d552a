"""`EMA` in `model.fit`, compared with its definition in float64."""

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
    """Compare with the definition, from the step where the average starts."""
    if not ema.bias_correction:
        before = [samples.initial, *samples.weights][ema.start_step]
        options.setdefault("initial", before)
    expected = reference.ema(
        samples.weights,
        ema.decay,
        every=ema.every_steps,
        start=ema.start_step,
        warmup=ema.warmup,
        **options,
    )
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


# `dense` and `batch_norm` are averaged in the next tests.
@pytest.mark.parametrize("kind", ["nested", "shared", "subclassed", "lazy"])
def test_the_average_is_as_defined_for_models_of_every_kind(kind):
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.KINDS[kind]()), samples, ema)
    assert len(samples.weights) == 50
    assert_average(ema, samples)


def averages_with_every_option():
    """Averages with and without bias correction; the first is swapped in."""
    yield EMA(0.5**0.1)
    for decay, warmup, every, start in [
        (0.9, True, 1, 0),
        (0.99999, True, 4, 17),
        (0.0, False, 7, 0),
        # At the end of an epoch the model holds the first average, and a
        # textbook average must start from the raw weights.
        (0.9, False, 1, 10),
    ]:
        for bias_correction in (False, True):
            yield EMA(
                decay,
                warmup=warmup,
                every_steps=every,
                start_step=start,
                bias_correction=bias_correction,
                swap=False,
                name=f"every-{every}-from-{start}-{bias_correction}",
            )


def test_averages_with_every_option_are_as_defined_in_one_fit():
    samples, averages = Samples(), [*averages_with_every_option()]
    fit(compiled(models.dense()), samples, *averages)
    for ema in averages:
        assert_average(ema, samples)


def test_warm_up_without_bias_correction_is_that_of_tensorflow():
    """`tf.train.ExponentialMovingAverage(.25, num_updates=1)` keeps 2/11."""
    model = compiled(models.dense())
    ema = EMA(0.25, warmup=True, bias_correction=False)
    ema.set_model(model)
    first = model.get_weights()
    model.set_weights([w + 1 for w in first])
    ema.update()
    expected = [w + 1 - 2 / 11 for w in first]
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


# The default on a CPU is one of these on JAX, and neither elsewhere.
@pytest.mark.parametrize("option", ["run_eagerly", "jit_compile"])
def test_the_average_is_as_defined_however_the_step_is_compiled(option):
    if option == "jit_compile" and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.nested(), **{option: True}), samples, ema, epochs=2)
    assert_average(ema, samples)


def batch_norm_and_count():
    """A model with an integer among its weights."""
    model = models.batch_norm()
    model.add_weight((), "ones", dtype="int32", trainable=False, name="count")
    return compiled(model)


def train(*callbacks):
    """Train a model; return it and the losses of its epochs."""
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
    """A training with three averages; the model holds the raw weights."""
    samples, swapped = Samples(), EMA(0.97)
    kernels = EMA(0.97, include=r"kernel$", swap=False, name="kernels")
    textbook = EMA(
        0.97,
        every_steps=3,
        start_step=4,
        bias_correction=False,
        swap=False,
        name="late",
    )
    model, losses = train(samples, swapped, kernels, textbook)
    swapped.restore()
    return Trained(model, losses, samples, swapped, kernels)


def test_moving_statistics_are_averaged_as_defined(trained):
    assert_average(trained.swapped, trained.samples)


def test_averages_do_not_change_training(trained):
    samples = Samples()
    model, losses = train(samples)
    assert trained.losses == losses
    assert trained.samples.losses == samples.losses
    assert equal(trained.samples.weights[-1], samples.weights[-1])
    assert equal(trained.model.get_weights(), model.get_weights())


def test_training_is_the_same_without_other_batch_hooks(trained):
    """Keras calls hooks in another way if no other callback has batch hooks."""
    ema = EMA(0.97, include=lambda path: "kernel" in path)
    model, losses = train(ema)
    assert losses == trained.losses
    # `include` may be a function of the path.
    assert equal(ema.get_weights(), trained.kernels.get_weights())
    assert equal(model.get_weights(), ema.get_weights())


def test_excluded_weights_keep_their_raw_values(trained):
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


def test_a_plain_model_with_the_averaged_weights_has_the_same_score(trained):
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


def test_the_average_of_given_weights_agrees_on_every_backend():
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
    """Set for one test, and reset before fixtures of the next one."""
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "dtype_policy", ["mixed_float16", "bfloat16", "float64"], indirect=True
)
def test_averages_are_as_defined_with_every_dtype_policy(dtype_policy):
    if dtype_policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only with jax_enable_x64")
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
    """No optimizer updates them: each step computes them from scratch."""
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


def test_the_average_is_right_if_layers_are_frozen_between_two_fits():
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


def test_in_a_custom_training_loop_the_average_is_as_defined():
    model = compiled(models.batch_norm())
    x, y = data(1)
    ema, walk = EMA(0.9, every_steps=2), []
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
