"""When an average is swapped in, in many sequences of calls."""

import contextlib
import gc
import weakref
from typing import Any, NamedTuple

import keras
import models
import numpy
import probe
import pytest
import reference
import reused
from models import BATCH, InOrder, Samples, compiled, data, equal

from keras_wavg import EMA

X, Y = data(6)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def score(model, *callbacks):
    return model.evaluate(X, Y, verbose=0, callbacks=[*callbacks])


def predict(model, *callbacks):
    return model.predict(X, verbose=0, callbacks=[*callbacks])


def assert_average(ema, samples, **options):
    expected = reference.ema(samples, ema.decay, **options)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def as_in_model(weights, model):
    return [
        numpy.asarray(w, dtype=v.dtype)
        for w, v in zip(weights, model.get_weights(), strict=True)
    ]


@pytest.fixture
def dense():
    return reused.dense()


@pytest.fixture
def batch_norm():
    return reused.batch_norm()


def twice_without_an_average(model):
    """The raw weights after each step of two trainings."""
    samples = Samples()
    fit(model, samples)
    predict(model)  # On torch a `DataLoader` advances the seed.
    fit(model, samples)
    return samples.weights


@pytest.fixture(scope="module")
def plain_dense():
    return twice_without_an_average(reused.dense())


@pytest.fixture(scope="module")
def plain_batch_norm():
    return twice_without_an_average(reused.batch_norm())


@pytest.fixture(scope="module")
def aborted():
    """A model whose training may be aborted."""
    return compiled(models.dense())


class SwapRecorder(keras.callbacks.Callback):
    """Records at each hook whether the model holds the average."""

    def __init__(self, ema: EMA) -> None:
        super().__init__()
        self.ema = ema
        self.seen: list[tuple[str, bool]] = []

    def record(self, hook: str) -> None:
        """Compare the model's weights with the average."""
        try:
            averaged = as_in_model(self.ema.get_weights(), self.model)
        except ValueError:
            return
        self.seen.append((hook, equal(self.model.get_weights(), averaged)))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Record."""
        self.record("epoch_begin")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Record."""
        self.record("batch_begin")

    def on_test_begin(self, logs: Any = None) -> None:
        """Record."""
        self.record("test_begin")

    def on_test_end(self, logs: Any = None) -> None:
        """Record."""
        self.record("test_end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Record."""
        self.record("epoch_end")

    def on_train_end(self, logs: Any = None) -> None:
        """Record."""
        self.record("train_end")


IN = {"test_begin", "test_end", "epoch_end", "train_end"}


class Watched(NamedTuple):
    model: Any
    ema: EMA
    recorders: list[SwapRecorder]
    scores: list[float]


@pytest.fixture(scope="module")
def watched():
    """A training with validation in every second epoch."""
    model, ema = compiled(models.batch_norm()), EMA(0.9, bias_correction=False)
    first, last = SwapRecorder(ema), SwapRecorder(ema)
    options = {"validation_data": (X, Y), "validation_freq": 2}
    history = fit(model, first, ema, last, epochs=4, **options).history
    return Watched(model, ema, [first, last], history["val_loss"])


@pytest.mark.parametrize(
    "recorder", [0, 1], ids=["listed before", "listed after"]
)
def test_the_model_holds_the_average_between_two_epochs(watched, recorder):
    seen = watched.recorders[recorder].seen
    hooks = [hook for hook, _ in seen]
    assert {"epoch_begin", "batch_begin", "train_end"} < {*hooks}
    assert hooks.count("epoch_end") == 2 * hooks.count("test_end") == 4
    for hook, inside in seen:
        # Raw weights are restored in `on_epoch_begin` of the average.
        if (recorder, hook) != (0, "epoch_begin"):
            assert inside == (hook in IN), hook


def test_validation_measures_the_average(watched):
    averaged = score(watched.model)
    assert watched.scores[-1] == pytest.approx(averaged, rel=1e-6)
    watched.ema.restore()
    assert abs(score(watched.model) - averaged) > 1e-4


def test_with_data_of_unknown_length_the_average_is_swapped_in(dense):
    samples, ema = Samples(), EMA(0.9, bias_correction=False)
    recorder = SwapRecorder(ema)
    for batches in (7, 3, 5):
        data_of_unknown_length = models.generator(batches)
        callbacks = [samples, ema, recorder]
        dense.fit(data_of_unknown_length, verbose=0, callbacks=callbacks)
    assert ("epoch_end", True) in recorder.seen
    assert all(inside for hook, inside in recorder.seen if hook in IN)
    assert len(samples.weights) == 15
    assert_average(ema, samples.weights, initial=samples.initial)


def test_without_swap_the_model_holds_the_raw_weights(dense):
    ema, samples = EMA(0.9, swap=False), Samples()
    history = fit(dense, samples, ema, validation_data=(X, Y)).history
    assert equal(dense.get_weights(), samples.weights[-1])
    raw = pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert score(dense) == raw
    assert score(dense, ema) == raw
    assert equal(dense.get_weights(), samples.weights[-1])


def test_two_fits_make_one_average_of_all_steps():
    """Also of a model that the first batch builds."""
    model, ema, samples = compiled(models.lazy()), EMA(0.9), Samples()
    fit(model, samples, ema)
    again = Samples()
    fit(model, again, ema)
    assert equal(again.initial, samples.weights[-1])
    assert_average(ema, samples.weights + again.weights)


def test_a_fit_without_epochs_leaves_the_average_in_the_model(dense):
    ema = EMA(0.9)
    fit(dense, ema)
    averaged = dense.get_weights()
    fit(dense, ema, initial_epoch=2)
    assert equal(dense.get_weights(), averaged)
    assert probe.is_in_model(ema)


def test_a_new_average_in_a_second_fit_starts_from_the_raw_weights(
    plain_dense, dense
):
    samples, second = Samples(), EMA(0.9)
    fit(dense, EMA(0.9))
    fit(dense, samples, second)
    assert equal(samples.weights[-1], plain_dense[-1])
    assert_average(second, samples.weights)


def test_a_model_saved_after_fit_has_the_score_of_the_average(
    batch_norm, tmp_path
):
    fit(batch_norm, EMA(0.9))
    averaged = score(batch_norm)
    batch_norm.save(tmp_path / "model.keras")
    batch_norm.save_weights(tmp_path / "model.weights.h5")
    assert score(keras.models.load_model(tmp_path / "model.keras")) == averaged
    as_new = reused.batch_norm()
    assert score(as_new) != averaged
    as_new.load_weights(tmp_path / "model.weights.h5")
    assert score(as_new) == averaged


def test_a_prediction_between_two_fits_does_not_change_training(
    plain_batch_norm, batch_norm
):
    ema, samples = EMA(0.9), Samples()
    fit(batch_norm, samples, ema)
    predict(batch_norm, ema)
    fit(batch_norm, samples, ema)
    assert equal(samples.weights[-1], plain_batch_norm[-1])
    assert_average(ema, samples.weights)


def test_evaluate_and_predict_swap_in_and_restore(batch_norm):
    ema, evaluations = EMA(0.9), [score, predict]
    fit(batch_norm, ema)
    averaged = [evaluate(batch_norm) for evaluate in evaluations]
    ema.restore()
    raw = batch_norm.get_weights()
    for evaluate, expected in zip(evaluations, averaged, strict=True):
        assert numpy.array_equal(evaluate(batch_norm, ema), expected)
        assert equal(batch_norm.get_weights(), raw)
        assert not numpy.array_equal(evaluate(batch_norm), expected)


def test_train_on_batch_after_fit_trains_the_averaged_weights(dense):
    ema = EMA(0.9)
    fit(dense, ema)
    averaged = ema.get_weights()
    dense.train_on_batch(X[:BATCH], Y[:BATCH])
    assert equal(ema.get_weights(), averaged)
    assert not equal(dense.get_weights(), averaged)
    trained = dense.get_weights()
    again = Samples()
    with pytest.warns(match="restarts: 4 weights"):
        fit(dense, again, ema)
    assert equal(again.initial, trained)
    assert_average(ema, again.weights)


def test_evaluating_before_any_fit_changes_nothing(dense):
    ema, samples = EMA(0.9), Samples()
    before = dense.get_weights()
    plain = score(dense)
    assert score(dense, ema) == plain
    assert equal(dense.get_weights(), before)
    fit(dense, samples, ema)
    assert_average(ema, samples.weights)


def test_weights_loaded_between_two_fits_restart_the_average(dense):
    ema, samples = EMA(0.9), Samples()
    fit(dense, ema)
    loaded = [w * 0.9 for w in dense.get_weights()]
    dense.set_weights(loaded)
    with pytest.warns(match=r"restarts: 4 weights .*'sequential.*replaced"):
        fit(dense, samples, ema)
    assert equal(samples.initial, loaded)
    assert_average(ema, samples.weights)


def test_evaluate_restores_weights_loaded_after_fit(dense):
    ema = EMA(0.9)
    fit(dense, ema)
    averaged = score(dense)
    loaded = [w * 0.9 for w in dense.get_weights()]
    dense.set_weights(loaded)
    assert score(dense, ema) == averaged
    assert equal(dense.get_weights(), loaded)


class Stop(keras.callbacks.Callback):
    """Stops training after a batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self.stop_at = (epoch, batch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop."""
        if (self.epoch, batch) == self.stop_at:
            self.model.stop_training = True


@pytest.mark.parametrize(
    "validation",
    [{}, {"validation_data": (X, Y)}],
    ids=["without", "with validation"],
)
def test_an_early_stop_ends_on_the_average(dense, validation):
    ema, samples = EMA(0.9), Samples()
    fit(dense, samples, ema, Stop(1, 2), epochs=5, **validation)
    assert len(samples.weights) == 9
    assert_average(ema, samples.weights)
    assert equal(dense.get_weights(), as_in_model(ema.get_weights(), dense))
    ema.restore()
    assert equal(dense.get_weights(), samples.weights[-1])


class Fail(keras.callbacks.Callback):
    """Raises an error in a hook."""

    def __init__(self, error: type[BaseException], hook: str) -> None:
        super().__init__()
        self.error = error
        setattr(self, hook, self.fail)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        """Raise."""
        raise self.error


@pytest.mark.parametrize("restored", [False, True])
def test_after_ctrl_c_in_validation_fit_continues_from_the_raw_weights(
    aborted, restored
):
    ema, all_weights = EMA(0.9), []
    for hook in [
        "on_test_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
    ]:
        samples, resumed = Samples(), Samples()
        fail = Fail(KeyboardInterrupt, hook)
        with contextlib.suppress(KeyboardInterrupt):
            fit(aborted, samples, ema, fail, validation_data=(X, Y))
        assert len(samples.weights) == 6
        if restored:
            ema.restore()
            assert equal(aborted.get_weights(), samples.weights[-1])
        fit(aborted, resumed, ema, epochs=1, validation_data=(X, Y))
        assert equal(resumed.initial, samples.weights[-1])
        all_weights += samples.weights + resumed.weights
        assert_average(ema, all_weights)


def test_after_an_exception_in_a_batch_training_continues(aborted):
    ema, samples, resumed = EMA(0.9), Samples(), Samples()
    with pytest.raises(RuntimeError):
        fit(aborted, samples, ema, Fail(RuntimeError, "on_train_batch_end"))
    fit(aborted, resumed, ema)
    assert_average(ema, samples.weights + resumed.weights)


def test_an_evaluation_after_an_aborted_fit_swaps_in_and_restores(aborted):
    ema = EMA(0.9)
    for hook in ("on_train_batch_begin", "on_epoch_end"):
        with pytest.raises(RuntimeError):
            fit(aborted, ema, Fail(RuntimeError, hook))
    ema.restore()
    raw = aborted.get_weights()
    score(aborted, ema)
    assert equal(aborted.get_weights(), raw)


def test_a_callback_that_is_not_in_a_list_works_or_is_refused(aborted):
    """On JAX and torch Keras would call it from other threads."""
    ema = EMA(0.9)
    if keras.config.backend() == "tensorflow":
        aborted.fit(X, Y, epochs=2, verbose=0, callbacks=ema)
        averaged = as_in_model(ema.get_weights(), aborted)
        assert equal(aborted.get_weights(), averaged)
    else:
        with pytest.raises(RuntimeError, match=r"callbacks=\[EMA"):
            aborted.fit(X, Y, epochs=2, verbose=0, callbacks=ema)
    samples, ema = Samples(), EMA(0.9)
    fit(aborted, samples, ema)
    assert_average(ema, samples.weights)


class ReadAverageInMidEpoch(keras.callbacks.Callback):
    """Reads the averaged weights after a batch."""

    def __init__(self, ema: EMA) -> None:
        super().__init__()
        self.ema = ema

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Read them."""
        if batch == 2:
            with self.ema.applied():
                self.value = keras.ops.convert_to_numpy(
                    self.model.trainable_variables[0].value
                )


def test_reading_the_average_in_mid_epoch_does_not_change_training(
    plain_batch_norm, batch_norm
):
    samples, ema = Samples(), EMA(0.9)
    fit(batch_norm, samples, ema, ReadAverageInMidEpoch(ema))
    assert equal(samples.weights[-1], plain_batch_norm[11])
    assert_average(ema, samples.weights)


class LoadAtEpochEnd(keras.callbacks.Callback):
    """Replaces the weights between epochs, as loading the best ones does."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace."""
        if epoch == 0:
            self.loaded = [w * 0.9 for w in self.model.get_weights()]
            self.model.set_weights(self.loaded)


def test_weights_replaced_between_epochs_restart_the_average(dense):
    samples, ema, load = Samples(), EMA(0.9), LoadAtEpochEnd()
    with pytest.warns(match="restarts: 4 weights"):
        fit(dense, samples, ema, load)
    plain, keep = reused.dense(), Samples()
    plain.set_weights(load.loaded)
    fit(plain, keep, epochs=1)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, keep.weights)


def test_one_callback_averages_each_of_two_models(dense, batch_norm):
    ema, samples = EMA(0.9), (Samples(), Samples())
    fit(dense, samples[0], ema)
    fit(batch_norm, samples[1], ema)
    assert_average(ema, samples[1].weights)
    score(dense, ema)
    assert_average(ema, samples[0].weights)
    fit(dense, samples[0], ema)
    assert_average(ema, samples[0].weights)


def test_a_layer_added_between_two_fits_restarts_the_average():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ema, first, samples = EMA(0.9), Samples(), Samples()
    fit(compiled(model), first, ema)
    model.add(keras.layers.Dense(1))
    with pytest.warns(match="restarts: the model has other weights"):
        fit(compiled(model), samples, ema)
    assert equal(samples.initial[:2], first.weights[-1])
    assert_average(ema, samples.weights)


class SetNonFinite(keras.callbacks.Callback):
    """Sets an element of a weight to NaN or infinity after some steps."""

    def __init__(self, values: dict[int, float]) -> None:
        super().__init__()
        self.values = values
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Set the element, before the average is updated."""
        if self.count in self.values:
            weights = self.model.get_weights()
            weights[0].flat[-1] = self.values[self.count]
            self.model.set_weights(weights)
        self.count += 1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Reset the element, so that training continues."""
        weights = self.model.get_weights()
        if not numpy.isfinite(weights[0]).all():
            weights[0].flat[-1] = 0.0
            self.model.set_weights(weights)


@pytest.mark.parametrize(
    "build", [reused.dense, reused.batch_norm], ids=["dense", "batch_norm"]
)
def test_an_element_that_is_not_finite_is_skipped_with_one_warning(
    build, recwarn
):
    samples, ema, model = Samples(), EMA(0.9), build()
    non_finite = SetNonFinite({0: numpy.nan, 5: numpy.inf, 17: -numpy.inf})
    fit(model, InOrder(non_finite, samples, ema), epochs=3)
    ema.restore()
    assert ema.skipped == [model.weights[0].path]
    expected = reference.average_of_finite(
        samples.weights, lambda n: (1 - 0.9) / (1 - 0.9**n)
    )
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6
    warned = [w for w in recwarn if "NaN or infinite" in str(w.message)]
    assert len(warned) == 1


@pytest.mark.parametrize("value", [1e15, 1e30])
def test_large_weights_are_averaged_and_nan_is_skipped(batch_norm, value):
    # The square of 1e30 is infinite in float32.
    ema = EMA(0.9)
    ema.set_model(batch_norm)
    large = [numpy.full_like(w, value) for w in batch_norm.get_weights()]
    batch_norm.set_weights(large)
    ema.update()
    before = ema.get_weights()
    assert ema.skipped == []
    for got, expected in zip(before, large, strict=True):
        # A GPU divides with an error in the last digit.
        numpy.testing.assert_allclose(got, expected, rtol=1e-6)
    batch_norm.set_weights([w * numpy.nan for w in large])
    ema.update()
    assert equal(ema.get_weights(), before)
    assert ema.skipped == [v.path for v in batch_norm.weights]


def test_an_average_that_never_starts_warns_and_leaves_raw_weights(dense):
    ema, samples = EMA(0.9, start_step=1000), Samples()
    with pytest.warns(UserWarning, match="made no average"):
        fit(dense, samples, ema)
    assert equal(dense.get_weights(), samples.weights[-1])


def test_a_custom_training_loop_with_a_callback_list_works_as_fit(dense):
    ema, walk = EMA(0.9), []
    callbacks = keras.callbacks.CallbackList([ema], model=dense)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(5):
            callbacks.on_train_batch_begin(batch)
            dense.train_on_batch(X[:BATCH], Y[:BATCH])
            walk.append(dense.get_weights())
            callbacks.on_train_batch_end(batch)
            if batch == 2:
                # An evaluation in the middle of an epoch.
                callbacks.on_test_begin()
                assert probe.is_in_model(ema)
                callbacks.on_test_end()
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()
    assert_average(ema, walk)
    ema.restore()
    assert equal(dense.get_weights(), walk[-1])
    ema.apply()
    assert equal(dense.get_weights(), as_in_model(ema.get_weights(), dense))


def test_a_deleted_model_is_freed_and_restore_does_nothing():
    # Skip older objects: collecting TensorFlow's graphs takes a second.
    gc.freeze()
    first, second, ema = (
        compiled(models.dense()),
        compiled(models.lazy()),
        EMA(0.9),
    )
    fit(first, ema, epochs=1)
    ema.set_model(second)
    deleted = weakref.ref(first)
    del first
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    gc.unfreeze()
    assert deleted() is None
    ema.restore()


def test_a_textbook_average_starts_from_the_model_that_was_set_last(
    dense, batch_norm
):
    ema = EMA(0.9, bias_correction=False)
    ema.set_model(dense)
    ema.set_model(batch_norm)
    initial = batch_norm.get_weights()
    batch_norm.train_on_batch(X[:BATCH], Y[:BATCH])
    ema.update()
    assert_average(ema, [batch_norm.get_weights()], initial=initial)


def test_a_custom_training_loop_works_after_fit_with_another_average(dense):
    fitted, ema, walk = EMA(0.9), EMA(0.5), []
    fit(dense, fitted)
    ema.set_model(dense)
    for _ in range(4):
        dense.train_on_batch(X[:BATCH], Y[:BATCH])
        walk.append(dense.get_weights())
        ema.update()
        assert equal(dense.get_weights(), walk[-1])
    assert_average(ema, walk)


def test_an_interrupted_evaluation_does_not_change_the_next_fit(aborted):
    ema = EMA(0.9, bias_correction=False)
    fit(aborted, ema)
    ema.restore()
    with pytest.raises(KeyboardInterrupt):
        score(aborted, ema, Fail(KeyboardInterrupt, "on_test_batch_end"))
    ema.restore()
    recorder = SwapRecorder(ema)
    fit(aborted, recorder, ema, validation_data=(X, Y))
    assert {"test_begin", "epoch_end"} < {hook for hook, _ in recorder.seen}
    assert all(inside for hook, inside in recorder.seen if hook in IN)
