"""Averages in host memory, while the weights live on another device."""

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
    "textbook": {"bias_correction": False, "every": 3},
    "late": {"warmup": True, "start": 5},
}


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


def places(model):
    """Whether the weights of a model are on the host."""
    return {on_host(variable.value) for variable in model.weights}


def each_option(suffix, device, swapped=None):
    """One `EMA` of each."""
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
    """Two trainings with averages on the host, and each beside its weights."""
    host = each_option("_host", "cpu", swapped="plain")
    beside = each_option("_beside", None)
    there = []
    with elsewhere():
        model, samples = compiled(models.batch_norm()), models.Samples()
        there.append(places(model))
        for _ in range(2):
            fit(model, samples, *host, *beside, epochs=1)
            there.append(places(model))
        raw_tensors = probe.raw_tensors(host[0])
        host[0].restore()
        there.append(places(model))
    return SimpleNamespace(
        samples=samples,
        pairs=list(zip(host, beside, strict=True)),
        raw_tensors=raw_tensors,
        raw=model.get_weights(),
        places=there,
    )


def test_averages_on_the_host_are_the_same_numbers(run):
    for host, beside in run.pairs:
        received = host.get_weights()
        if accelerator():  # which rounds in its own way
            pair = received, beside.get_weights()
            assert reference.relative_error(*pair) < 1e-6
        else:
            assert equal(received, beside.get_weights())
        expected = reference.ema(
            run.samples.weights,
            0.9,
            initial=None if host.bias_correction else run.samples.initial,
            every=host.every,
            start=host.start,
            warmup=host.warmup,
        )
        assert reference.relative_error(received, expected) < 1e-6
    assert equal(run.raw, run.samples.weights[-1])


def test_the_model_stays_on_its_device_and_the_average_on_the_host(run):
    expected = {backend == "torch" and not accelerator()}
    assert run.places == [expected] * 4
    for host, _ in run.pairs:
        assert all(map(on_host, probe.buffers(host)))


def test_raw_weights_wait_on_the_host_while_the_average_is_in(run):
    assert run.raw_tensors
    for raw in run.raw_tensors:
        assert isinstance(raw, numpy.ndarray) or on_host(raw)


@pytest.mark.skipif(backend != "jax", reason="JAX lists the living arrays")
def test_the_device_of_the_weights_holds_nothing_more_between_updates():
    import jax

    class Memory(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.bytes = []

        def on_train_batch_begin(self, batch, logs=None):
            alive = [a for a in jax.live_arrays() if not on_host(a)]
            self.bytes.append(sum(a.nbytes for a in alive))

    with elsewhere():
        model = compiled(models.batch_norm())
    weights = sum(w.nbytes for w in model.get_weights())

    def held(*averages):
        gc.collect()
        with elsewhere():
            memory = Memory()
            fit(model, *averages, memory)
        # At an epoch's first batch Keras still holds what it evaluated.
        return numpy.array(memory.bytes).reshape(2, 6)[:, 1:]

    plain, on_the_host, beside = (
        held(),
        held(EMA(0.9, device="cpu", every=2)),
        held(EMA(0.9, name="beside")),
    )
    assert (on_the_host - plain < 0.001 * weights).all()
    assert (beside - on_the_host > 0.9 * weights).all()


def test_half_precision_weights_are_averaged_on_the_host():
    keras.config.set_dtype_policy("bfloat16")
    with elsewhere():
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


def test_steps_that_only_the_device_counts_are_averaged_on_the_host():
    keras.config.set_dtype_policy("mixed_float16")
    with elsewhere():
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


def test_elements_that_are_not_finite_are_left_out_on_the_host():
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
    expected = reference.of_finite(samples, lambda n: (1 - 0.9) / (1 - 0.9**n))
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
    assert_is_average_of(samples, ema)
