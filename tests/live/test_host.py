"""Averages in host memory, while the weights live on another device."""

import contextlib
import gc

import keras
import models
import numpy
import probe
import pytest
import reference
from models import compiled, data, equal
from models import fit_and_validate as fit

from keras_wavg import EMA

backend = keras.config.backend()


def accelerator():
    """Whether there is a device that is none of the host's."""
    if backend == "jax":
        import jax

        return jax.devices()[0].platform != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return False


def elsewhere():
    """The accelerator, or as its stand-in a device not the host's first."""
    if accelerator():
        return contextlib.nullcontext()
    if backend == "jax":
        import jax

        return jax.default_device(jax.devices()[3])
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.device("CPU:1")
    # torch has one CPU, and no other device that computes.
    return contextlib.nullcontext()


def on_host(array):
    """Whether it is on the host's first device."""
    if backend == "jax":
        return all(d.platform == "cpu" and d.id == 0 for d in array.devices())
    if backend == "tensorflow":
        return array.device.endswith("CPU:0")
    return array.device.type == "cpu"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 4},
        {"bias_correction": False, "every": 3},
        {"warmup": True, "start": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["batch_norm", "subclassed"])
def test_averages_on_the_host_are_the_same_numbers(kind, options):
    with elsewhere():
        model, samples = compiled(models.KINDS[kind]()), models.Samples()
        model(data(1)[0])
        host = EMA(0.9, device="cpu", **options)
        beside = EMA(0.9, swap=False, **options)
        fit(model, samples, host, beside)
        received = host.get_weights()
        host.restore()
        assert equal(model.get_weights(), samples.weights[-1])
    if accelerator():  # which rounds in its own way
        pairs = received, beside.get_weights()
        assert reference.relative_error(*pairs) < 1e-6
    else:
        assert equal(received, beside.get_weights())
    expected = reference.ema(
        samples.weights,
        0.9,
        initial=None if host.bias_correction else samples.initial,
        every=host.every,
        start=host.start,
        warmup=host.warmup,
    )
    assert reference.relative_error(received, expected) < 1e-6


def test_the_model_stays_on_its_device_and_the_average_on_the_host():
    with elsewhere():
        model, ema = compiled(models.batch_norm()), EMA(0.9, device="cpu")
        for _ in range(2):
            there = {on_host(v.value) for v in model.weights}
            assert there == {backend == "torch" and not accelerator()}
            fit(model, ema)
        ema.restore()
        assert {on_host(v.value) for v in model.weights} == there
    assert all(map(on_host, probe.buffers(ema)))


def test_raw_weights_wait_on_the_host_while_the_average_is_in():
    with elsewhere():
        model, ema = compiled(models.batch_norm()), EMA(0.9, device="cpu")
        fit(model, ema)
    for raw in probe.raw_tensors(ema):
        assert isinstance(raw, numpy.ndarray) or on_host(raw)


def test_the_device_of_the_weights_holds_nothing_more_between_updates():
    if backend != "jax":
        pytest.skip("JAX can list the arrays that are alive")
    import jax

    class Memory(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.bytes = []

        def on_train_batch_begin(self, batch, logs=None):
            alive = [a for a in jax.live_arrays() if not on_host(a)]
            self.bytes.append(sum(a.nbytes for a in alive))

    def held(*averages):
        gc.collect()
        with elsewhere():
            memory, model = Memory(), compiled(models.batch_norm())
            fit(model, *averages, memory)
        # At an epoch's first batch Keras still holds what it evaluated.
        return numpy.array(memory.bytes).reshape(2, 6)[:, 1:]

    plain, on_the_host, beside = (
        held(),
        held(EMA(0.9, device="cpu", every=2)),
        held(EMA(0.9)),
    )
    weights = sum(w.nbytes for w in models.batch_norm().get_weights())
    assert (abs(on_the_host - plain) < 0.001 * weights).all()
    assert (beside - plain > 0.9 * weights).all()


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_float16"])
def test_half_precision_weights_are_averaged_on_the_host(policy):
    keras.config.set_dtype_policy(policy)
    with elsewhere():
        model, samples = compiled(models.dense(), "sgd"), models.Samples()
        ema = EMA(0.9, device="cpu")
        fit(model, samples, ema)
        received = ema.get_weights()
        ema.restore()
        assert equal(model.get_weights(), samples.weights[-1])
    assert all(w.dtype == "float32" for w in received)
    expected = reference.ema(
        [[w.astype("float32") for w in s] for s in samples.weights], 0.9
    )
    assert reference.relative_error(received, expected) < 1e-6


def test_a_step_that_is_not_finite_is_left_out_on_the_host():
    model, ema = models.dense(), EMA(0.9, device="cpu")
    ema.set_model(model)
    samples = []
    for step in range(6):
        weights = [
            numpy.full(w.shape, numpy.nan if step == 3 else step, "float32")
            for w in model.get_weights()
        ]
        model.set_weights(weights)
        ema.update()
        if step != 3:
            samples.append(weights)
    assert ema.skipped == 1
    expected = reference.ema(samples, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_weights_that_change_right_after_an_update_do_not_change_it():
    """The copy is of the step's own weights, though it arrives later."""
    model, ema = models.batch_norm(), EMA(0.9, device="cpu")
    ema.set_model(model)
    samples = []
    for step in range(5):
        model.set_weights([w + step for w in model.get_weights()])
        samples.append(model.get_weights())
        ema.update()
        model.set_weights([w * 2 for w in model.get_weights()])
    expected = reference.ema(samples, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6
