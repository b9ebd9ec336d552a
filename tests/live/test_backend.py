"""The rooms that know a backend, where they can go wrong on their own."""

import logging
import resource
from pathlib import Path

import keras
import models
import numpy
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from models import BATCH, compiled, data, equal

from keras_wavg import EMA
from keras_wavg.backend.packing import SMALL, Packing

on_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX's own")
on_torch = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="torch's own"
)
on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's own"
)
STATM = Path("/proc/self/statm")
X, Y = data(5)


def fit(model, *callbacks, epochs=2):
    return model.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks],
        validation_data=(X, Y),
    )


SHAPES = st.sampled_from(
    [(), (0,), (3,), (2, 2), (SMALL,), (SMALL + 1,), (1, 4, 1)]
)


@settings(deadline=None, max_examples=30)
@given(
    arrays=st.lists(st.tuples(SHAPES, st.booleans()), min_size=1, max_size=6)
)
def test_unpacking_gives_what_was_packed(arrays):
    shapes, packable = zip(*arrays, strict=True)
    packing = Packing(shapes, packable)
    values = [
        numpy.full(shape, index, "float32")
        for index, shape in enumerate(shapes)
    ]
    packed = packing.pack([keras.ops.convert_to_tensor(v) for v in values])
    unpacked = packing.unpack(packed)
    assert equal([keras.ops.convert_to_numpy(a) for a in unpacked], values)


@on_jax
def test_the_private_and_the_public_way_to_jax_weights_give_the_same(
    monkeypatch,
):
    module = pytest.importorskip("keras_wavg.backend.jax")

    def train():
        ema = EMA(0.9)
        model = compiled(models.batch_norm())
        fit(model, ema)
        model.layers[0].trainable = False
        fit(compiled(model), ema)
        return ema.get_weights()

    calls = []
    attach = module.attach_weights
    monkeypatch.setattr(
        module, "attach_weights", lambda m: (calls.append(m), attach(m))
    )
    private = train()
    assert not calls
    monkeypatch.setattr(module, "_pending_state", lambda _: {})
    assert equal(train(), private)
    assert len(calls) == 20


@on_jax
def test_swaps_do_not_make_jax_compile_a_step_again(caplog):
    """A committed array in a variable would make a new program of the step."""
    import jax

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        fit(compiled(models.batch_norm()), EMA(0.9123), epochs=3)
    compiled_now = [
        r.message
        for r in caplog.records
        if "Finished XLA compilation" in r.message
    ]
    for name in ("train_step", "test_step", "update"):
        assert sum(f"jit({name})" in text for text in compiled_now) == 1, name


@on_torch
def test_a_transposed_torch_parameter_is_averaged_element_by_element():
    """The fused kernel walks memory, not indices."""
    import torch

    layer = keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((4,)), layer])
    transposed = torch.arange(12.0, device=layer.kernel.value.device)
    transposed = transposed.reshape(3, 4).t()
    layer.kernel._value = torch.nn.Parameter(transposed)
    ema = EMA(0.9)
    ema.set_model(model)
    ema.update()
    assert numpy.array_equal(ema.get_weights()[0], transposed.cpu().numpy())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_torch_averages_stay_on_their_device_whatever_keras_prefers(device):
    """The meta device computes nothing: what came to it would be lost."""
    if keras.config.backend() != "torch":
        pytest.skip("other backends follow the arrays")
    model, ema = models.dense(), EMA(0.9, device=device)
    ema.set_model(model)
    samples = []
    for step in range(3):
        model.set_weights([w + step for w in model.get_weights()])
        samples.append(model.get_weights())
        with keras.device("meta" if step else "cpu"):
            ema.update()
    expected = reference.ema(samples, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_step_is_updated_without_reading_anything_back(device, monkeypatch):
    """Between two epochs the host learns nothing from the device."""
    if device == "cpu" and keras.config.backend() == "jax":
        import jax

        if jax.devices()[0].platform != "cpu":
            pytest.skip("between two platforms JAX goes through the host")
    read_back = []
    monkeypatch.setattr(
        keras.ops, "convert_to_numpy", lambda *_: read_back.append("numpy")
    )
    model, ema = models.batch_norm(), EMA(0.9, device=device)
    ema.set_model(compiled(model))
    if keras.config.backend() == "jax":
        import jax.numpy as jnp

        ema.update()
        # Every conversion of a JAX array to a Python or NumPy value asks here.
        array = type(jnp.zeros(()))
        value = array._value
        monkeypatch.setattr(
            array,
            "_value",
            property(lambda a: read_back.append("value") or value.fget(a)),
        )
        for _ in range(3):
            ema.update()
    elif keras.config.backend() == "torch":
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if "_local_scalar_dense" in str(func):
                    read_back.append(func)
                return func(*args, **(kwargs or {}))

        ema.update()
        with Watch():
            ema.update()
    else:
        import tensorflow as tf

        ema.update()
        monkeypatch.setattr(
            tf.__internal__.EagerTensor,
            "numpy",
            lambda _: read_back.append("numpy"),
        )
        ema.update()
    assert not read_back


@on_tensorflow
def test_a_file_that_is_loaded_again_compiles_nothing_again(
    tmp_path, monkeypatch
):
    import tensorflow as tf

    ema, model = EMA(0.9), compiled(models.dense())
    fit(model, ema)
    model.save_weights(tmp_path / "all.weights.h5")
    monkeypatch.setattr(tf, "function", None)
    model.load_weights(tmp_path / "all.weights.h5")
    fit(model, ema)


@pytest.mark.skipif(not STATM.exists(), reason="Linux tells its memory")
def test_updates_leave_nothing_behind_in_memory():
    ema, model = EMA(0.9), models.dense()
    ema.set_model(model)

    def pages_after_updates(count):
        for _ in range(count):
            ema.update()
        return int(STATM.read_text().split()[1])

    before = pages_after_updates(5000)
    grown = (pages_after_updates(10_000) - before) * resource.getpagesize()
    assert grown / 10_000 < 250  # bytes
