"""Swaps are exact, and averages share no memory with the model."""

import gc
import warnings
import weakref

import keras
import models
import numpy
import probe
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import BATCH, compiled, data, equal
from saving import random_walk

from keras_wavg import EMA

X, Y = data(4)


def fit(model, *callbacks):
    model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[*callbacks])


@pytest.fixture(scope="module")
def model():
    """A model with weights too large to be packed. Each test trains it."""
    return compiled(models.batch_norm())


@pytest.fixture(scope="module")
def two_averages():
    """Two averages for all tests, so that each is compiled once."""
    late = EMA(
        0.9, bias_correction=False, start_step=3, swap=False, name="late"
    )
    return EMA(0.9), late


@pytest.fixture
def ema(model, two_averages):
    """The average that `fit` swaps in."""
    with warnings.catch_warnings():
        # Another test may have trained the model with the average swapped in.
        warnings.filterwarnings("ignore", ".*restarts")
        fit(model, *two_averages)
    return two_averages[0]


@pytest.fixture
def not_swapped(ema, two_averages):
    """The average that `fit` does not swap in."""
    return two_averages[1]


def model_with_kernel(dtype, values):
    model = keras.Sequential(
        [keras.Input((len(values),)), keras.layers.Dense(1, dtype=dtype)]
    )
    set_kernel(model, values)
    return model


def set_kernel(model, values):
    model.set_weights([numpy.reshape(values, (-1, 1)), numpy.ones(1)])


HALVES = st.lists(st.floats(-6e4, 6e4, width=16), min_size=3, max_size=3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_apply_and_restore_keep_every_bit_of_the_raw_weights(dtype):
    model, ema = model_with_kernel(dtype, [1.0, 2.0, 3.0]), EMA(0.5)
    ema.set_model(model)

    @given(averaged=HALVES, raw=HALVES)
    def check(averaged, raw):
        set_kernel(model, averaged)
        ema.update()
        set_kernel(model, raw)
        before = model.get_weights()
        ema.apply()
        ema.restore()
        assert equal(model.get_weights(), before)

    check()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_raw_weights_far_from_their_average_are_restored_exactly(dtype):
    """Keras on TensorFlow swaps by addition and subtraction: 1e-6 becomes 0."""
    model, ema = model_with_kernel(dtype, [1e3, -1e3, 1e-6]), EMA(0.999)
    ema.set_model(model)
    for _ in range(3):
        ema.update()
    model.set_weights([numpy.array([[1e-6], [1e-6], [1e3]]), numpy.ones(1)])
    before = model.get_weights()
    with ema.applied():
        assert float(model.get_weights()[0][0, 0]) == pytest.approx(
            1e3, rel=1e-2
        )
    assert equal(model.get_weights(), before)


def test_neither_average_nor_raw_weights_share_memory_with_the_model(
    model, ema, not_swapped
):
    """JAX donates the model's arrays to the next compiled step."""
    averages = ema.get_weights(), not_swapped.get_weights()
    for _ in range(3):
        model.train_on_batch(X, Y)
        model.test_on_batch(X, Y)
        model.predict_on_batch(X)
    fit(model)
    for average, weights in zip((ema, not_swapped), averages, strict=True):
        assert equal(average.get_weights(), weights)
    ema.restore()
    raw = model.get_weights()
    for _ in range(2):
        ema.apply()
        model.test_on_batch(X, Y)
        model.predict_on_batch(X)
        ema.restore()
        assert equal(model.get_weights(), raw)


def test_weights_trained_while_the_average_is_swapped_in_are_kept(model, ema):
    averaged = model.get_weights()
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    trained = model.get_weights()
    assert not equal(trained, averaged)
    assert equal(ema.get_weights()[0], averaged[0])
    ema.restore()
    assert equal(model.get_weights(), trained)


def test_a_loaded_average_does_not_share_memory_with_the_model(
    model, ema, tmp_path
):
    model.save_weights(tmp_path / "a.weights.h5")
    model.load_weights(tmp_path / "a.weights.h5")
    averaged = ema.get_weights()
    assert probe.is_in_model(ema)
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    assert equal(ema.get_weights(), averaged)


def test_averages_and_raw_weights_do_not_record_gradients(ema):
    """Otherwise a torch average would use more memory with every step."""
    for value in [*probe.tensors(ema), *probe.raw_tensors(ema)]:
        assert not getattr(value, "requires_grad", False)


def test_an_average_does_not_keep_its_model_alive():
    # Ignore existing objects: TensorFlow keeps many graphs.
    gc.freeze()
    model = compiled(models.dense())
    fit(model, EMA(0.9))
    reference = weakref.ref(model)
    del model
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert reference() is None
    gc.unfreeze()


def test_a_second_apply_or_restore_changes_nothing(model, ema):
    averaged = model.get_weights()
    ema.apply()
    assert equal(model.get_weights(), averaged)
    ema.restore()
    raw = model.get_weights()
    ema.restore()
    assert equal(model.get_weights(), raw)
    assert not equal(raw, averaged)


def test_a_context_keeps_an_average_that_was_swapped_in_before(model, ema):
    averaged = model.get_weights()
    with ema.applied():
        pass
    assert equal(model.get_weights(), averaged)


def test_an_interrupted_swap_loses_no_raw_weights(model, ema):
    ema.restore()
    raw = model.get_weights()
    interrupt_after(2, probe.variables(ema))
    with pytest.raises(KeyboardInterrupt):
        ema.apply()
    assert not equal(model.get_weights(), raw)
    ema.restore()
    assert equal(model.get_weights(), raw)
    ema.apply()
    ema.restore()
    assert equal(model.get_weights(), raw)


def test_an_interrupted_swap_between_averages_loses_no_raw_weights(model, ema):
    ema.restore()
    raw = model.get_weights()
    other = EMA(0.5, swap=False, name="other")
    random_walk(model, other)
    model.set_weights(raw)
    ema.apply()
    interrupt_after(2, probe.variables(ema))
    with pytest.raises(KeyboardInterrupt):
        other.apply()
    ema.restore()
    assert equal(model.get_weights(), raw)


def test_a_weight_that_is_nan_is_swapped_in_and_restored(model):
    """NaN in the model does not mean that other code wrote the weight."""
    ema, found = EMA(0.9), model.get_weights()
    found[0][0, 0] = numpy.nan
    ema.set_model(model)
    for factor in (0.9, 0.5):
        raw = [w * factor for w in found]
        model.set_weights(raw)
        ema.update()
    ema.apply()
    averaged = model.get_weights()
    assert numpy.isnan(averaged[0][0, 0])
    ema.restore()
    assert equal(model.get_weights(), raw)


class Failing(keras.utils.PyDataset):
    """A dataset that fails at its third batch."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise KeyError("no such batch")
        x, y = data(1)
        return x, y


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_training_continues_from_the_raw_weights_after_an_error(
    name, model, ema
):
    """The JAX trainer still holds the average as the current weights."""
    ema.restore()
    raw = model.get_weights()
    # TensorFlow raises an error of another class.
    with pytest.raises(Exception, match="no such batch"), ema.applied():
        getattr(model, name)(Failing(), verbose=0)
    assert equal(model.get_weights(), raw)
    initial = InitialWeights()
    fit(model, initial, ema)
    assert equal(initial.weights, raw)


class InitialWeights(keras.callbacks.Callback):
    """Records the weights at the start of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.weights = self.model.get_weights()


def interrupt_after(count, variables):
    """Raise `KeyboardInterrupt` once, between two assignments."""
    variable = variables[count]
    assign = variable.assign

    def interrupted(value):
        variable.__dict__.pop("assign", None)
        variable.assign = assign
        raise KeyboardInterrupt

    variable.assign = interrupted
