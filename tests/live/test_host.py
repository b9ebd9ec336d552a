"""Averages in host memory, with the weights on another device."""

import contextlib
import gc
from types import SimpleNamespace

import keras
import models
import numpy
import probe
import pytest
import reference
from models import compiled, equal
from models import fit_and_validate as fit

from keras_wavg import EMA

backend = keras.config.backend()
OPTIONS = {
    "plain": {},
    "textbook": {"bias_correction": False, "every_steps": 3},
    "late": {"warmup": True, "start_step": 5},
}


def accelerator():
    """Whether there is a device other than the CPU."""
    if backend == "jax":
        import jax

        return jax.devices()[0].platform != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return False


def on_another_device():
    """Context of the accelerator, or of another CPU device in its place."""
    if accelerator():
        return contextlib.nullcontext()
    if backend == "jax":
        import jax

        return jax.default_device(jax.devices()[3])
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.device("CPU:1")
    # torch has only one CPU device.
    return contextlib.nullcontext()


def on_host(array):
    """Whether an array is on the first device of the host."""
    if backend == "jax":
        return all(d.platform == "cpu" and d.id == 0 for d in array.devices())
    if backend == "tensorflow":
        return array.device.endswith("CPU:0")
    return array.device.type == "cpu"


def on_host_flags(model):
    """The set of `on_host` over the weights of a model."""
    return {on_host(variable.value) for variable in model.weights}


def each_option(suffix, device, swapped=None):
    """One `EMA` for each of the options."""
    return [
        EMA(
            0.9,
            swap=name == swapped,
            name=name + suffix,
            device=device,
            **options,
        )
        for name, options in OPTIONS.items()
    ]


@pytest.fixture(scope="module")
def run():
    """Train twice with averages on the host, and on the device."""
    host = each_option("_host", "cpu", swapped="plain")
    on_device = each_option("_on_device", None)
    flags = []
    with on_another_device():
        model, samples = compiled(models.batch_norm()), models.Samples()
        flags.append(on_host_flags(model))
        for _ in range(2):
            fit(model, samples, *host, *on_device, epochs=1)
            flags.append(on_host_flags(model))
        raw_tensors = probe.raw_tensors(host[0])
        host[0].restore()
        flags.append(on_host_flags(model))
    return SimpleNamespace(
        samples=samples,
        pairs=list(zip(host, on_device, strict=True)),
        raw_tensors=raw_tensors,
        raw=model.get_weights(),
        on_host_flags=flags,
    )


def test_averages_on_the_host_equal_averages_on_the_device(run):
    for host, on_device in run.pairs:
        received = host.get_weights()
        if accelerator():  # rounds differently
            pair = received, on_device.get_weights()
            assert reference.relative_error(*pair) < 1e-6
        else:
            assert equal(received, on_device.get_weights())
        expected = reference.ema(
            run.samples.weights,
            0.9,
            initial=None if host.bias_correction else run.samples.initial,
            every=host.every_steps,
            start=host.start_step,
            warmup=host.warmup,
        )
        assert reference.relative_error(received, expected) < 1e-6
    assert equal(run.raw, run.samples.weights[-1])


def test_the_model_stays_on_its_device_and_the_average_on_the_host(run):
    expected = {backend == "torch" and not accelerator()}
    assert run.on_host_flags == [expected] * 4
    for host, _ in run.pairs:
        assert all(map(on_host, probe.buffers(host)))


def test_raw_weights_are_on_the_host_while_the_average_is_swapped_in(run):
    assert run.raw_tensors
    for raw in run.raw_tensors:
        assert isinstance(raw, numpy.ndarray) or on_host(raw)


@pytest.mark.skipif(backend != "jax", reason="only JAX lists its live arrays")
def test_an_average_on_the_host_uses_no_device_memory_between_updates():
    import jax

    class Memory(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.bytes = []

        def on_train_batch_begin(self, batch, logs=None):
            alive = [a for a in jax.live_arrays() if not on_host(a)]
            self.bytes.append(sum(a.nbytes for a in alive))

    with on_another_device():
        model = compiled(models.batch_norm())
    weights = sum(w.nbytes for w in model.get_weights())

    def held(*averages):
        gc.collect()
        with on_another_device():
            memory = Memory()
            fit(model, *averages, memory)
        # At the first batch of an epoch Keras still holds validation arrays.
        return numpy.array(memory.bytes).reshape(2, 6)[:, 1:]

    plain, on_host_bytes, on_device = (
        held(),
        held(EMA(0.9, device="cpu", every_steps=2)),
        held(EMA(0.9, name="on_device")),
    )
    assert (on_host_bytes - plain < 0.001 * weights).all()
    assert (on_device - on_host_bytes > 0.9 * weights).all()


def test_half_precision_weights_are_averaged_on_the_host():
    keras.config.set_dtype_policy("bfloat16")
    with on_another_device():
        model, ema = models.dense(), EMA(0.9, device="cpu")
        ema.set_model(model)
        samples = []
        for step in range(1, 8):
            model.set_weights([w + 1 / step for w in model.get_weights()])
            samples.append(model.get_weights())
            ema.update()
        ema.apply()
        assert not equal(model.get_weights(), samples[-1])
        ema.restore()
    assert equal(model.get_weights(), samples[-1])
    assert all(w.dtype == "float32" for w in ema.get_weights())
    assert_is_average_of(samples, ema)


def test_an_average_on_the_host_is_correct_with_loss_scaling():
    """The number of steps is known on the device only."""
    keras.config.set_dtype_policy("mixed_float16")
    with on_another_device():
        model, samples = compiled(models.dense()), models.Samples()
        ema = EMA(0.9, device="cpu")
        fit(model, samples, ema, epochs=1)
    assert_is_average_of(samples.weights, ema)
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def assert_is_average_of(samples, ema):
    samples = [[w.astype("float32") for w in sample] for sample in samples]
    expected = reference.ema(samples, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_an_average_on_the_host_excludes_elements_that_are_not_finite():
    model, ema = models.dense(), EMA(0.9, device="cpu")
    ema.set_model(model)
    first, samples = model.get_weights(), []
    for step in range(6):
        weights = [w + step for w in first]
        weights[0][step % 4] = numpy.nan
        samples.append(weights)
        model.set_weights(weights)
        ema.update()
    assert ema.skipped == [model.weights[0].path]
    expected = reference.average_of_finite(
        samples, lambda n: (1 - 0.9) / (1 - 0.9**n)
    )
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_changing_weights_after_an_update_does_not_change_the_average():
    """The asynchronous copy has the weights at the time of the update."""
    model, ema = models.batch_norm(), EMA(0.9, device="cpu")
    ema.set_model(model)
    samples = []
    for step in range(5):
        model.set_weights([w + step for w in model.get_weights()])
        samples.append(model.get_weights())
        ema.update()
        model.set_weights([w * 2 for w in model.get_weights()])
    assert_is_average_of(samples, ema)
