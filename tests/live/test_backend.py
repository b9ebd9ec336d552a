"""Behavior that is specific to one backend."""

import logging

import keras
import models
import numpy
import probe
import pytest
import reference
from models import BATCH, compiled, data, equal

from keras_wavg import EMA

on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="specific to JAX"
)
on_torch = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="specific to torch"
)
on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="specific to TensorFlow"
)
X, Y = data(5)


def fit(model, *callbacks, epochs=1, **options):
    return model.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks],
        **options,
    )


@on_jax
def test_averages_on_jax_are_equal_with_and_without_private_state(
    monkeypatch,
):
    module = pytest.importorskip("keras_wavg.averages.jax")

    def train():
        ema = EMA(0.9)
        model = compiled(models.batch_norm())
        fit(model, ema, epochs=2)
        model.layers[0].trainable = False
        fit(compiled(model), ema, epochs=2)
        return ema.get_weights()

    calls = []
    attach = module.sync_weights
    monkeypatch.setattr(
        module, "sync_weights", lambda m: (calls.append(m), attach(m))
    )
    private = train()
    assert not calls
    monkeypatch.setattr(module, "pending_state", lambda _: {})
    assert equal(train(), private)
    assert len(calls) == 20


@on_jax
def test_swaps_do_not_recompile_the_training_step_on_jax(caplog):
    """A committed array in a variable would cause a compilation."""
    import jax

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        options = {"epochs": 3, "validation_data": (X, Y)}
        fit(compiled(models.batch_norm()), EMA(0.9123), **options)
    messages = [
        r.message
        for r in caplog.records
        if "Finished XLA compilation" in r.message
    ]
    for name in ("train_step", "test_step", "update"):
        assert sum(f"jit({name})" in text for text in messages) == 1, name


@on_torch
def test_a_transposed_torch_parameter_is_averaged_element_by_element():
    """The fused kernel reads memory in order and ignores strides."""
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
def test_torch_averages_stay_on_their_device_in_any_device_scope(device):
    """The meta device has no data: values moved there would be lost."""
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
def test_an_update_reads_no_value_back_from_the_device(device, monkeypatch):
    """Reading a value would make the host wait for the device."""
    if device == "cpu" and keras.config.backend() == "jax":
        import jax

        if jax.devices()[0].platform != "cpu":
            pytest.skip("JAX copies between platforms through the host")
    read_back = []
    monkeypatch.setattr(
        keras.ops, "convert_to_numpy", lambda *_: read_back.append("numpy")
    )
    model, ema = models.batch_norm(), EMA(0.9, device=device)
    ema.set_model(compiled(model))
    if keras.config.backend() == "jax":
        import jax.numpy as jnp

        ema.update()
        # Every conversion of a JAX array to a Python or NumPy value reads this.
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

        probe.update_as_on_an_accelerator(monkeypatch)
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
def test_loading_a_file_does_not_recompile_the_update(tmp_path, monkeypatch):
    import tensorflow as tf

    ema, model = EMA(0.9), compiled(models.dense())
    fit(model, ema)
    model.save_weights(tmp_path / "all.weights.h5")
    monkeypatch.setattr(tf, "function", None)
    model.load_weights(tmp_path / "all.weights.h5")
    fit(model, ema)
