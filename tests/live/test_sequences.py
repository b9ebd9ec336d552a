"""When the average is in the model, whatever happens before and after."""

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
    predict(model)  # On torch a `DataLoader` moves the seed.
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


class Spy(keras.callbacks.Callback):
    """Notes at each hook whether the model holds the average."""

    def __init__(self, ema: EMA) -> None:
        super().__init__()
        self.ema = ema
        self.seen: list[tuple[str, bool]] = []

    def note(self, hook: str) -> None:
        """Compare the model's weights with the average."""
        try:
            averaged = as_in_model(self.ema.get_weights(), self.model)
        except ValueError:
            return
        self.seen.append((hook, equal(self.model.get_weights(), averaged)))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note."""
        self.note("epoch_begin")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Note."""
        self.note("batch_begin")

    def on_test_begin(self, logs: Any = None) -> None:
        """Note."""
        self.note("test_begin")

    def on_test_end(self, logs: Any = None) -> None:
        """Note."""
        self.note("test_end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Note."""
        self.note("epoch_end")

    def on_train_end(self, logs: Any = None) -> None:
        """Note."""
        self.note("train_end")


IN = {"test_begin", "test_end", "epoch_end", "train_end"}


class Watched(NamedTuple):
    model: Any
    ema: EMA
    spies: list[Spy]
    scores: list[float]


@pytest.fixture(scope="module")
def watched():
    """A training with a validation of every second epoch."""
    model, ema = compiled(models.batch_norm()), EMA(0.9, bias_correction=False)
    first, last = Spy(ema), Spy(ema)
    options = {"validation_data": (X, Y), "validation_freq": 2}
    history = fit(model, first, ema, last, epochs=4, **options).history
    return Watched(model, ema, [first, last], history["val_loss"])


@pytest.mark.parametrize("spy", [0, 1], ids=["listed before", "behind"])
def test_the_average_is_in_from_the_last_batch_to_the_next_epoch(watched, spy):
    seen = watched.spies[spy].seen
    hooks = [hook for hook, _ in seen]
    assert {"epoch_begin", "batch_begin", "train_end"} < {*hooks}
    assert hooks.count("epoch_end") == 2 * hooks.count("test_end") == 4
    for hook, inside in seen:
        # An average gives way at the beginning of an epoch, in its turn.
        if (spy, hook) != (0, "epoch_begin"):
            assert inside == (hook in IN), hook


def test_validation_measures_the_average(watched):
    averaged = score(watched.model)
    assert watched.scores[-1] == pytest.approx(averaged, rel=1e-6)
    watched.ema.restore()
    assert abs(score(watched.model) - averaged) > 1e-4


def test_with_data_of_unknown_length_the_average_goes_in_at_the_epochs_end(
    dense,
):
    samples, ema = Samples(), EMA(0.9, bias_correction=False)
    spy = Spy(ema)
    for batches in (7, 3, 5):
        data_of_unknown_length = models.generator(batches)
        callbacks = [samples, ema, spy]
        dense.fit(data_of_unknown_length, verbose=0, callbacks=callbacks)
    assert ("epoch_end", True) in spy.seen
    assert all(inside for hook, inside in spy.seen if hook in IN)
    assert len(samples.weights) == 15
    assert_average(ema, samples.weights, initial=samples.initial)


def test_swap_false_never_touches_the_model(dense):
    ema, samples = EMA(0.9, swap=False), Samples()
    history = fit(dense, samples, ema, validation_data=(X, Y)).history
    assert equal(dense.get_weights(), samples.weights[-1])
    raw = pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert score(dense) == raw
    assert score(dense, ema) == raw
    assert equal(dense.get_weights(), samples.weights[-1])


def test_fit_and_fit_again_is_one_average_of_all_steps():
    """Also of a model that the first batch builds."""
    model, ema, samples = compiled(models.lazy()), EMA(0.9), Samples()
    fit(model, samples, ema)
    again = Samples()
    fit(model, again, ema)
    assert equal(again.initial, samples.weights[-1])
    assert_average(ema, samples.weights + again.weights)


def test_a_fit_of_no_epoch_leaves_the_average_in_the_model(dense):
    ema = EMA(0.9)
    fit(dense, ema)
    averaged = dense.get_weights()
    fit(dense, ema, initial_epoch=2)
    assert equal(dense.get_weights(), averaged)
    assert probe.is_in_model(ema)


def test_a_new_average_in_a_second_fit_finds_the_raw_weights_too(
    plain_dense, dense
):
    samples, second = Samples(), EMA(0.9)
    fit(dense, EMA(0.9))
    fit(dense, samples, second)
    assert equal(samples.weights[-1], plain_dense[-1])
    assert_average(second, samples.weights)


def test_fit_evaluate_save_and_load(batch_norm, tmp_path):
    fit(batch_norm, EMA(0.9))
    averaged = score(batch_norm)
    batch_norm.save(tmp_path / "model.keras")
    batch_norm.save_weights(tmp_path / "model.weights.h5")
    assert score(keras.models.load_model(tmp_path / "model.keras")) == averaged
    as_new = reused.batch_norm()
    assert score(as_new) != averaged
    as_new.load_weights(tmp_path / "model.weights.h5")
    assert score(as_new) == averaged


def test_fit_predict_fit_leaves_training_undisturbed(
    plain_batch_norm, batch_norm
):
    ema, samples = EMA(0.9), Samples()
    fit(batch_norm, samples, ema)
    predict(batch_norm, ema)
    fit(batch_norm, samples, ema)
    assert equal(samples.weights[-1], plain_batch_norm[-1])
    assert_average(ema, samples.weights)


def test_a_bare_evaluation_swaps_in_and_out(batch_norm):
    ema, evaluations = EMA(0.9), [score, predict]
    fit(batch_norm, ema)
    averaged = [evaluate(batch_norm) for evaluate in evaluations]
    ema.restore()
    raw = batch_norm.get_weights()
    for evaluate, expected in zip(evaluations, averaged, strict=True):
        assert numpy.array_equal(evaluate(batch_norm, ema), expected)
        assert equal(batch_norm.get_weights(), raw)
        assert not numpy.array_equal(evaluate(batch_norm), expected)


def test_fit_and_train_on_batch_trains_what_the_model_holds(dense):
    ema = EMA(0.9)
    fit(dense, ema)
    averaged = ema.get_weights()
    dense.train_on_batch(X[:BATCH], Y[:BATCH])
    assert equal(ema.get_weights(), averaged)
    assert not equal(dense.get_weights(), averaged)
    trained = dense.get_weights()
    again = Samples()
    with pytest.warns(match="starts anew: 4 weights"):
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


def test_weights_loaded_between_two_fits_count(dense):
    ema, samples = EMA(0.9), Samples()
    fit(dense, ema)
    loaded = [w * 0.9 for w in dense.get_weights()]
    dense.set_weights(loaded)
    with pytest.warns(match="starts anew: 4 weights, 'sequential.*replaced"):
        fit(dense, samples, ema)
    assert equal(samples.initial, loaded)
    assert_average(ema, samples.weights)


def test_evaluating_weights_loaded_after_fit_gives_them_back(dense):
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
    """Raises in validation."""

    def __init__(self, error: type[BaseException], hook: str) -> None:
        super().__init__()
        self.error = error
        setattr(self, hook, self.fail)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        """Raise."""
        raise self.error


@pytest.mark.parametrize("restored", [False, True])
def test_after_ctrl_c_in_validation_training_goes_on_from_the_raw_weights(
    aborted, restored
):
    ema, all_weights = EMA(0.9), []
    for hook in [
        "on_test_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
    ]:
        samples, begun = Samples(), Samples()
        fail = Fail(KeyboardInterrupt, hook)
        with contextlib.suppress(KeyboardInterrupt):
            fit(aborted, samples, ema, fail, validation_data=(X, Y))
        assert len(samples.weights) == 6
        if restored:
            ema.restore()
            assert equal(aborted.get_weights(), samples.weights[-1])
        fit(aborted, begun, ema, epochs=1, validation_data=(X, Y))
        assert equal(begun.initial, samples.weights[-1])
        all_weights += samples.weights + begun.weights
        assert_average(ema, all_weights)


def test_after_an_exception_in_a_batch_training_goes_on(aborted):
    ema, samples, begun = EMA(0.9), Samples(), Samples()
    with pytest.raises(RuntimeError):
        fit(aborted, samples, ema, Fail(RuntimeError, "on_train_batch_end"))
    fit(aborted, begun, ema)
    assert_average(ema, samples.weights + begun.weights)


def test_an_evaluation_after_an_aborted_fit_swaps_in_and_out(aborted):
    ema = EMA(0.9)
    for hook in ("on_train_batch_begin", "on_epoch_end"):
        with pytest.raises(RuntimeError):
            fit(aborted, ema, Fail(RuntimeError, hook))
    ema.restore()
    raw = aborted.get_weights()
    score(aborted, ema)
    assert equal(aborted.get_weights(), raw)


def test_a_bare_callback_is_refused_or_averaged_and_nothing_is_lost(aborted):
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


class EvaluateInTheMiddle(keras.callbacks.Callback):
    """Evaluates with the average after a batch, as a monitor would."""

    def __init__(self, ema: EMA) -> None:
        super().__init__()
        self.ema = ema

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Evaluate."""
        if batch == 2:
            with self.ema.applied():
                self.value = keras.ops.convert_to_numpy(
                    self.model.trainable_variables[0].value
                )


def test_a_look_at_the_average_in_mid_epoch_leaves_training_undisturbed(
    plain_batch_norm, batch_norm
):
    samples, ema = Samples(), EMA(0.9)
    fit(batch_norm, samples, ema, EvaluateInTheMiddle(ema))
    assert equal(samples.weights[-1], plain_batch_norm[11])
    assert_average(ema, samples.weights)


class LoadAtEpochEnd(keras.callbacks.Callback):
    """Replaces the weights between epochs, as a restart from the best does."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace."""
        if epoch == 0:
            self.loaded = [w * 0.9 for w in self.model.get_weights()]
            self.model.set_weights(self.loaded)


def test_weights_that_a_callback_replaces_between_epochs_count(dense):
    samples, ema, load = Samples(), EMA(0.9), LoadAtEpochEnd()
    with pytest.warns(match="starts anew: 4 weights"):
        fit(dense, samples, ema, load)
    plain, keep = reused.dense(), Samples()
    plain.set_weights(load.loaded)
    fit(plain, keep, epochs=1)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, keep.weights)


def test_one_callback_keeps_an_average_of_each_of_two_models(dense, batch_norm):
    ema, samples = EMA(0.9), (Samples(), Samples())
    fit(dense, samples[0], ema)
    fit(batch_norm, samples[1], ema)
    assert_average(ema, samples[1].weights)
    score(dense, ema)
    assert_average(ema, samples[0].weights)
    fit(dense, samples[0], ema)
    assert_average(ema, samples[0].weights)


def test_a_layer_added_between_two_fits_begins_a_new_average():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ema, first, samples = EMA(0.9), Samples(), Samples()
    fit(compiled(model), first, ema)
    model.add(keras.layers.Dense(1))
    with pytest.warns(match="starts anew: the model has other weights"):
        fit(compiled(model), samples, ema)
    assert equal(samples.initial[:2], first.weights[-1])
    assert_average(ema, samples.weights)


class Poison(keras.callbacks.Callback):
    """Makes one element of one weight NaN or infinite after some steps."""

    def __init__(self, values: dict[int, float]) -> None:
        super().__init__()
        self.values = values
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Poison the weights, before the average sees them."""
        if self.count in self.values:
            weights = self.model.get_weights()
            weights[0].flat[-1] = self.values[self.count]
            self.model.set_weights(weights)
        self.count += 1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Heal them, so that training goes on."""
        weights = self.model.get_weights()
        if not numpy.isfinite(weights[0]).all():
            weights[0].flat[-1] = 0.0
            self.model.set_weights(weights)


@pytest.mark.parametrize(
    "build", [reused.dense, reused.batch_norm], ids=["dense", "batch_norm"]
)
def test_an_element_that_is_not_finite_is_left_out_and_warned_of_once(
    build, recwarn
):
    samples, ema, model = Samples(), EMA(0.9), build()
    poison = Poison({0: numpy.nan, 5: numpy.inf, 17: -numpy.inf})
    fit(model, InOrder(poison, samples, ema), epochs=3)
    ema.restore()
    assert ema.skipped == [model.weights[0].path]
    expected = reference.of_finite(
        samples.weights, lambda n: (1 - 0.9) / (1 - 0.9**n)
    )
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6
    warned = [w for w in recwarn if "NaN or infinite" in str(w.message)]
    assert len(warned) == 1


def test_large_weights_are_averaged_and_nan_leaves_the_average_as_it_was(
    batch_norm,
):
    ema = EMA(0.9)
    ema.set_model(batch_norm)
    large = [numpy.full_like(w, 1e15) for w in batch_norm.get_weights()]
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


def test_an_average_that_never_began_leaves_raw_weights_and_says_so(dense):
    ema, samples = EMA(0.9, start=1000), Samples()
    with pytest.warns(UserWarning, match="made no average"):
        fit(dense, samples, ema)
    assert equal(dense.get_weights(), samples.weights[-1])


def test_a_loop_with_a_callback_list_is_averaged_as_a_fit(dense):
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
                # An evaluation of the user's own, in the middle of an epoch.
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


def test_a_model_that_is_gone_needs_no_raw_weights():
    # What is older is left out: TensorFlow's graphs take a second to look at.
    gc.freeze()
    first, second, ema = (
        compiled(models.dense()),
        compiled(models.lazy()),
        EMA(0.9),
    )
    fit(first, ema, epochs=1)
    ema.set_model(second)
    gone = weakref.ref(first)
    del first
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    gc.unfreeze()
    assert gone() is None
    ema.restore()


def test_another_model_chosen_before_training_has_its_own_textbook_average(
    dense, batch_norm
):
    ema = EMA(0.9, bias_correction=False)
    ema.set_model(dense)
    ema.set_model(batch_norm)
    initial = batch_norm.get_weights()
    batch_norm.train_on_batch(X[:BATCH], Y[:BATCH])
    ema.update()
    assert_average(ema, [batch_norm.get_weights()], initial=initial)


def test_a_loop_after_a_fit_with_another_average_trains_undisturbed(dense):
    fitted, ema, walk = EMA(0.9), EMA(0.5), []
    fit(dense, fitted)
    ema.set_model(dense)
    for _ in range(4):
        dense.train_on_batch(X[:BATCH], Y[:BATCH])
        walk.append(dense.get_weights())
        ema.update()
        assert equal(dense.get_weights(), walk[-1])
    assert_average(ema, walk)


def test_an_evaluation_cut_short_does_not_change_the_next_fit(aborted):
    ema = EMA(0.9, bias_correction=False)
    fit(aborted, ema)
    ema.restore()
    with pytest.raises(KeyboardInterrupt):
        score(aborted, ema, Fail(KeyboardInterrupt, "on_test_batch_end"))
    ema.restore()
    spy = Spy(ema)
    fit(aborted, spy, ema, validation_data=(X, Y))
    assert {"test_begin", "epoch_end"} < {hook for hook, _ in spy.seen}
    assert all(inside for hook, inside in spy.seen if hook in IN)
