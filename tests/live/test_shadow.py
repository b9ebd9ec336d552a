"""In and out of the model: bit for bit, and never the model's own buffers."""

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
from saving import walk

from keras_wavg import EMA

X, Y = data(4)


def fit(model, *callbacks):
    model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[*callbacks])


@pytest.fixture(scope="module")
def model():
    """Some weights are too big to pack. It is trained in each test."""
    return compiled(models.batch_norm())


@pytest.fixture(scope="module")
def both():
    """TensorFlow compiles the updates of an average once."""
    late = EMA(0.9, bias_correction=False, start=3, swap=False, name="late")
    return EMA(0.9), late


@pytest.fixture
def ema(model, both):
    """An average in the model, as `fit` leaves it there."""
    with warnings.catch_warnings():
        # Another test may have trained the model with the average in it.
        warnings.filterwarnings("ignore", ".*starts anew")
        fit(model, *both)
    return both[0]


@pytest.fixture
def beside(ema, both):
    """Another average, which `fit` has left out of the model."""
    return both[1]


def weights_of(dtype, values):
    model = keras.Sequential(
        [keras.Input((len(values),)), keras.layers.Dense(1, dtype=dtype)]
    )
    set_kernel(model, values)
    return model


def set_kernel(model, values):
    model.set_weights([numpy.reshape(values, (-1, 1)), numpy.ones(1)])


HALVES = st.lists(st.floats(-6e4, 6e4, width=16), min_size=3, max_size=3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_apply_and_restore_is_the_identity_bit_for_bit(dtype):
    model, ema = weights_of(dtype, [1.0, 2.0, 3.0]), EMA(0.5)
    ema.set_model(model)

    @given(averaged=HALVES, raw=HALVES)
    def identity(averaged, raw):
        set_kernel(model, averaged)
        ema.update()
        set_kernel(model, raw)
        before = model.get_weights()
        ema.apply()
        ema.restore()
        assert equal(model.get_weights(), before)

    identity()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_far_apart_from_their_average_come_back(dtype):
    """Keras on TensorFlow swaps by adding and subtracting: 1e-6 becomes 0."""
    model, ema = weights_of(dtype, [1e3, -1e3, 1e-6]), EMA(0.999)
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
    model, ema, beside
):
    """JAX gives the model's arrays away to its next jitted step."""
    averages = ema.get_weights(), beside.get_weights()
    for _ in range(3):
        model.train_on_batch(X, Y)
        model.test_on_batch(X, Y)
        model.predict_on_batch(X)
    fit(model)
    for average, weights in zip((ema, beside), averages, strict=True):
        assert equal(average.get_weights(), weights)
    ema.restore()
    raw = model.get_weights()
    for _ in range(2):
        ema.apply()
        model.test_on_batch(X, Y)
        model.predict_on_batch(X)
        ema.restore()
        assert equal(model.get_weights(), raw)


def test_weights_that_are_trained_while_the_average_is_in_stay(model, ema):
    averaged = model.get_weights()
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    trained = model.get_weights()
    assert not equal(trained, averaged)
    assert equal(ema.get_weights()[0], averaged[0])
    ema.restore()
    assert equal(model.get_weights(), trained)


def test_an_average_that_was_loaded_has_no_part_in_the_model(
    model, ema, tmp_path
):
    model.save_weights(tmp_path / "a.weights.h5")
    model.load_weights(tmp_path / "a.weights.h5")
    averaged = ema.get_weights()
    assert probe.is_in_model(ema)
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    assert equal(ema.get_weights(), averaged)


def test_weights_do_not_remember_how_they_were_computed(ema):
    """A torch average that records gradients grows with every step."""
    for value in [*probe.tensors(ema), *probe.raw_tensors(ema)]:
        assert not getattr(value, "requires_grad", False)


def test_a_model_is_not_kept_alive_by_its_average():
    # What there is already need not be looked through: TensorFlow keeps graphs.
    gc.freeze()
    model = compiled(models.dense())
    fit(model, EMA(0.9))
    reference = weakref.ref(model)
    del model
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert reference() is None
    gc.unfreeze()


def test_applying_twice_or_restoring_twice_changes_nothing(model, ema):
    averaged = model.get_weights()
    ema.apply()
    assert equal(model.get_weights(), averaged)
    ema.restore()
    raw = model.get_weights()
    ema.restore()
    assert equal(model.get_weights(), raw)
    assert not equal(raw, averaged)


def test_a_context_in_an_applied_average_leaves_it_there(model, ema):
    averaged = model.get_weights()
    with ema.applied():
        pass
    assert equal(model.get_weights(), averaged)


def test_an_interrupted_swap_loses_nothing(model, ema):
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


def test_an_interrupted_change_of_averages_loses_nothing(model, ema):
    ema.restore()
    raw = model.get_weights()
    other = EMA(0.5, swap=False, name="other")
    walk(model, other)
    model.set_weights(raw)
    ema.apply()
    interrupt_after(2, probe.variables(ema))
    with pytest.raises(KeyboardInterrupt):
        other.apply()
    ema.restore()
    assert equal(model.get_weights(), raw)


def test_a_weight_that_is_nan_is_swapped_as_others(model):
    """An average that is NaN in the model was not written to."""
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
    """Batches that come to an end too early."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise KeyError("no such batch")
        x, y = data(1)
        return x, y


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_training_goes_on_from_the_raw_weights_after_a_failed(name, model, ema):
    """JAX's trainer still holds the average as the weights of now."""
    ema.restore()
    raw = model.get_weights()
    # TensorFlow has an error of its own for it.
    with pytest.raises(Exception, match="no such batch"), ema.applied():
        getattr(model, name)(Failing(), verbose=0)
    assert equal(model.get_weights(), raw)
    begun = Beginning()
    fit(model, begun, ema)
    assert equal(begun.weights, raw)


class Beginning(keras.callbacks.Callback):
    """The weights that a training begins with."""

    def on_epoch_begin(self, epoch, logs=None):
        self.weights = self.model.get_weights()


def interrupt_after(count, variables):
    """Let Ctrl-C arrive between two assignments, once."""
    variable = variables[count]
    assign = variable.assign

    def interrupted(value):
        variable.__dict__.pop("assign", None)
        variable.assign = assign
        raise KeyboardInterrupt

    variable.assign = interrupted
