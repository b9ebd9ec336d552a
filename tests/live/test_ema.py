"""EMA through `model.fit`, against the definition in float64."""

import keras
import models
import numpy
import pytest
import reference
from models import Samples, Steps, compiled, data, equal

from keras_wavg import EMA

LIMIT = 1e-6


def fit(model, *callbacks, epochs=5, **options):
    x, y = data()
    options = {"batch_size": models.BATCH, "verbose": 0} | options
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def assert_average(ema, samples, **options):
    options.setdefault("every", ema.every)
    options.setdefault("start", ema.start)
    expected = reference.ema(
        samples.weights, ema.decay, warmup=ema.warmup, **options
    )
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


@pytest.mark.parametrize("kind", models.KINDS)
def test_fifty_steps_give_the_average_of_the_definition(kind):
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.KINDS[kind]()), samples, ema)
    assert len(samples.weights) == 50
    assert_average(ema, samples)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99999])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_every_decay_is_averaged_as_defined(decay, warmup, bias_correction):
    ema = EMA(decay, warmup=warmup, bias_correction=bias_correction)
    samples = Samples()
    fit(compiled(models.dense()), samples, ema)
    initial = None if bias_correction else samples.initial
    assert_average(ema, samples, initial=initial)


@pytest.mark.parametrize("every", [1, 4, 7])
@pytest.mark.parametrize("start", [0, 17])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_only_every_kth_step_from_the_start_counts(
    every, start, bias_correction
):
    ema = EMA(0.9, every=every, start=start, bias_correction=bias_correction)
    samples = Samples()
    fit(compiled(models.dense()), samples, ema)
    before = [samples.initial, *samples.weights][start]
    assert_average(ema, samples, initial=None if bias_correction else before)


def test_half_life_is_another_way_to_say_decay():
    samples, ema = Samples(), EMA(half_life=10)
    fit(compiled(models.dense()), samples, ema)
    assert ema.decay == pytest.approx(0.5**0.1)
    assert_average(ema, samples)


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


@pytest.mark.parametrize(
    "options",
    [
        {"run_eagerly": True},
        {"jit_compile": True},
        {"jit_compile": False},
    ],
    ids=str,
)
def test_averages_are_the_same_however_the_step_is_compiled(options):
    if options.get("jit_compile") and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.batch_norm(), **options), samples, ema)
    assert_average(ema, samples)


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.97},
        {"decay": 0.97, "swap": False},
        {"decay": 0.97, "every": 3, "start": 4},
        {"decay": 0.97, "bias_correction": False},
    ],
    ids=str,
)
def test_training_losses_are_those_of_fit_without_the_average(options):
    def train(*callbacks):
        samples = Samples()
        history = fit(
            compiled(models.batch_norm()),
            samples,
            *callbacks,
            validation_split=0.2,
        )
        return history.history["loss"], samples.losses, samples.weights[-1]

    losses, batch_losses, weights = train()
    losses_with, batch_losses_with, weights_with = train(EMA(**options))
    assert losses_with == losses
    assert batch_losses_with == batch_losses
    assert equal(weights_with, weights)


def test_training_losses_are_the_same_without_a_batch_hook_beside_ours():
    """Keras dispatches its own hooks otherwise when nobody has a batch hook."""
    plain = fit(compiled(models.batch_norm())).history["loss"]
    assert (
        fit(compiled(models.batch_norm()), EMA(0.97)).history["loss"] == plain
    )


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
    for _ in range(5000):
        ema.update()
    for average in ema.get_weights():
        assert average.dtype == "float32"
        assert average == pytest.approx(2 - 0.999**5000, abs=1e-3)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"]
)
def test_every_dtype_policy_is_averaged_as_defined(policy):
    keras.config.set_dtype_policy(policy)
    # float16 training skips the steps whose gradients overflow.
    samples, ema = Steps(), EMA(0.97)
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.01))
    fit(model, samples, ema, epochs=2)
    assert len(samples.weights) > 10
    assert_average(ema, samples)
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_float64_weights_are_averaged_in_float64():
    if keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where jax_enable_x64 is set")
    keras.config.set_dtype_policy("float64")
    samples, ema = Samples(), EMA(0.97)
    fit(compiled(models.dense()), samples, ema)
    assert {w.dtype for w in ema.get_weights()} == {numpy.dtype("float64")}
    assert_average(ema, samples)


def test_frozen_weights_stay_what_they_are():
    model = models.batch_norm()
    model.layers[0].trainable = False
    frozen = model.layers[0].get_weights()
    ema = EMA(0.97)
    fit(compiled(model), ema)
    assert equal(ema.get_weights()[:2], frozen)


def test_layers_frozen_between_two_fits_stay_aligned():
    model, samples, ema = models.batch_norm(), Samples(), EMA(0.97)
    fit(compiled(model), samples, ema, epochs=2)
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    fit(compiled(model), samples, ema, epochs=2)
    model.layers[0].trainable = True
    fit(compiled(model), samples, ema, epochs=1)
    assert_average(ema, samples)


def test_what_is_not_included_stays_raw():
    model, samples = compiled(models.batch_norm()), Samples()
    ema = EMA(0.97, include=r"kernel$")
    fit(model, samples, ema)
    averaged = reference.ema(samples.weights, 0.97)
    for weight, received, average, raw in zip(
        model.weights,
        ema.get_weights(),
        averaged,
        samples.weights[-1],
        strict=True,
    ):
        if weight.path.endswith("kernel"):
            assert received == pytest.approx(average, rel=1e-5, abs=1e-7)
        else:
            assert numpy.array_equal(received, raw)


def test_include_may_be_a_function_of_the_path():
    model = compiled(models.batch_norm())
    named = EMA(0.97, include=lambda path: "kernel" in path, swap=False)
    matched = EMA(0.97, include="kernel")
    fit(model, named, matched)
    assert equal(named.get_weights(), matched.get_weights())


def test_the_averaged_model_is_made_of_get_weights():
    model, ema = compiled(models.batch_norm()), EMA(0.97)
    fit(model, ema)
    x, y = data()
    expected = model.evaluate(x, y, verbose=0)
    other = compiled(models.batch_norm())
    other.set_weights(ema.get_weights())
    assert other.evaluate(x, y, verbose=0) == expected


def test_random_seeds_and_integers_are_not_averaged():
    model = models.batch_norm()
    model.add_weight((), "ones", dtype="int32", trainable=False, name="count")
    ema = EMA(0.97)
    fit(compiled(model), ema)
    received = ema.get_weights()
    assert len(received) == len(model.weights)
    assert [w.dtype.kind for w in received].count("i") == 1


def test_several_averages_ride_along_in_one_fit():
    model, samples = compiled(models.dense()), Samples()
    emas = [
        EMA(0.9),
        EMA(0.99, swap=False),
        EMA(0.5, every=3, swap=False, name="fast"),
    ]
    history = fit(model, samples, *emas).history
    for ema in emas:
        assert_average(ema, samples)
    assert (
        history["loss"]
        == fit(compiled(models.dense()), Samples()).history["loss"]
    )


def test_a_textbook_average_may_ride_along_from_the_last_batch_on():
    """The swapping average is in by then; the rider begins underneath it."""
    model, samples = compiled(models.dense()), Samples()
    rider = EMA(0.9, bias_correction=False, start=10, swap=False)
    fit(model, samples, EMA(0.9), rider, epochs=2)
    assert_average(rider, samples, initial=samples.weights[9])


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
