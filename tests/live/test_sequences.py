"""When the average is in the model, whatever happens before and after."""

import contextlib
import gc
from typing import Any

import keras
import models
import numpy
import pytest
import reference
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA

X, Y = data(6)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def score(model, *callbacks):
    return model.evaluate(X, Y, verbose=0, callbacks=[*callbacks])


def predict(model, *callbacks):
    return model.predict(X, verbose=0, callbacks=[*callbacks])


def assert_average(ema, samples):
    expected = reference.ema(samples, ema.decay)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def as_in_model(weights, model):
    return [
        numpy.asarray(w, dtype=v.dtype)
        for w, v in zip(weights, model.get_weights(), strict=True)
    ]


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


@pytest.mark.parametrize(
    "validation", [{}, {"validation_data": (X, Y)}], ids=str
)
@pytest.mark.parametrize("spy_first", [False, True])
def test_the_average_is_in_from_the_last_batch_to_the_next_epoch(
    validation, spy_first
):
    ema = EMA(0.9, bias_correction=False)
    spy = Spy(ema)
    order = [spy, ema] if spy_first else [ema, spy]
    fit(compiled(models.batch_norm()), *order, epochs=3, **validation)
    hooks = {hook for hook, _ in spy.seen}
    assert hooks >= {"epoch_begin", "batch_begin", "epoch_end", "train_end"}
    for hook, inside in spy.seen:
        if not (spy_first and hook == "epoch_begin"):
            assert inside == (hook in IN), hook


def test_validation_every_second_epoch_is_no_different():
    ema = EMA(0.9, bias_correction=False)
    spy = Spy(ema)
    options = {"validation_data": (X, Y), "validation_freq": 2}
    fit(compiled(models.dense()), spy, ema, epochs=4, **options)
    assert all(inside for hook, inside in spy.seen if hook in IN)
    assert not any(inside for hook, inside in spy.seen if hook == "batch_begin")


def test_with_data_of_unknown_length_the_average_goes_in_at_the_epochs_end():
    ema = EMA(0.9, bias_correction=False)
    spy = Spy(ema)
    model = compiled(models.dense())
    for _ in range(2):
        model.fit(models.generator(5), verbose=0, callbacks=[ema, spy])
    assert ("epoch_end", True) in spy.seen
    assert all(inside for hook, inside in spy.seen if hook in IN)


def test_swap_false_never_touches_the_model():
    ema, samples = EMA(0.9, swap=False), Samples()
    model = compiled(models.batch_norm())
    history = fit(model, samples, ema, validation_data=(X, Y))
    assert equal(model.get_weights(), samples.weights[-1])
    assert score(model) == pytest.approx(
        history.history["val_loss"][-1], rel=1e-5
    )
    score(model, ema)
    assert equal(model.get_weights(), samples.weights[-1])


def test_validation_measures_the_average():
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    history = fit(model, ema, validation_data=(X, Y))
    averaged = score(model)
    assert history.history["val_loss"][-1] == pytest.approx(averaged, rel=1e-6)
    ema.restore()
    assert abs(score(model) - averaged) > 1e-4


@pytest.mark.parametrize("kind", models.KINDS)
def test_fit_and_fit_again_is_one_average_of_all_steps(kind):
    model, ema, samples = compiled(models.KINDS[kind]()), EMA(0.9), Samples()
    fit(model, samples, ema)
    fit(model, samples, ema)
    plain = compiled(models.KINDS[kind]())
    keep = Samples()
    fit(plain, keep)
    fit(plain, keep)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, samples.weights)


def test_a_new_average_in_a_second_fit_finds_the_raw_weights_too():
    model, samples = compiled(models.dense()), Samples()
    fit(model, samples, EMA(0.9))
    second = EMA(0.9)
    later = Samples()
    fit(model, later, second)
    plain = compiled(models.dense())
    keep = Samples()
    fit(plain, keep)
    fit(plain, keep)
    assert equal(later.weights[-1], keep.weights[-1])
    assert_average(second, later.weights)


def test_fit_evaluate_save_and_load(tmp_path):
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    averaged = score(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert score(keras.models.load_model(tmp_path / "model.keras")) == averaged
    other = compiled(models.batch_norm())
    other.load_weights(tmp_path / "model.weights.h5")
    assert score(other) == averaged


def test_fit_predict_fit_leaves_training_undisturbed():
    model, ema, samples = compiled(models.batch_norm()), EMA(0.9), Samples()
    fit(model, samples, ema)
    predict(model, ema)
    fit(model, samples, ema)
    plain, keep = compiled(models.batch_norm()), Samples()
    fit(plain, keep)
    predict(plain)  # On torch a `DataLoader` moves the seed.
    fit(plain, keep)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, samples.weights)


@pytest.mark.parametrize("evaluation", [score, predict])
def test_a_bare_evaluation_swaps_in_and_out(evaluation):
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    averaged = evaluation(model)
    ema.restore()
    raw = model.get_weights()
    assert numpy.array_equal(evaluation(model, ema), averaged)
    assert equal(model.get_weights(), raw)
    assert not numpy.array_equal(evaluation(model), averaged)


def test_fit_and_train_on_batch_trains_what_the_model_holds():
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    averaged = ema.get_weights()
    model.train_on_batch(X[:BATCH], Y[:BATCH])
    assert equal(ema.get_weights(), averaged)
    assert not equal(model.get_weights(), averaged)
    trained = model.get_weights()
    again = Samples()
    fit(model, again, ema)
    assert equal(again.initial, trained)
    assert_average(ema, again.weights)


def test_evaluating_before_any_fit_changes_nothing():
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    before = model.get_weights()
    plain = score(model)
    assert score(model, ema) == plain
    assert equal(model.get_weights(), before)
    samples = Samples()
    fit(model, samples, ema)
    assert_average(ema, samples.weights)


def test_weights_loaded_between_two_fits_count():
    model, ema = compiled(models.batch_norm(), "sgd"), EMA(0.9)
    fit(model, ema)
    loaded = [w * 0.9 for w in model.get_weights()]
    model.set_weights(loaded)
    samples = Samples()
    fit(model, samples, ema)
    assert equal(samples.initial, loaded)
    assert_average(ema, samples.weights)


def test_evaluating_weights_loaded_after_fit_gives_them_back():
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    averaged = score(model)
    loaded = [w * 0.9 for w in model.get_weights()]
    model.set_weights(loaded)
    assert score(model, ema) == averaged
    assert equal(model.get_weights(), loaded)


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
    "validation", [{}, {"validation_data": (X, Y)}], ids=str
)
def test_an_early_stop_ends_on_the_average(validation):
    model, ema, samples = compiled(models.batch_norm()), EMA(0.9), Samples()
    fit(model, samples, ema, Stop(1, 2), epochs=5, **validation)
    assert len(samples.weights) == 9
    assert_average(ema, samples.weights)
    assert equal(model.get_weights(), as_in_model(ema.get_weights(), model))
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


class Fail(keras.callbacks.Callback):
    """Raises in validation."""

    def __init__(self, error: type[BaseException], hook: str) -> None:
        super().__init__()
        self.error = error
        setattr(self, hook, self.fail)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        """Raise."""
        raise self.error


@pytest.mark.parametrize(
    "hook",
    ["on_test_begin", "on_test_batch_end", "on_test_end", "on_epoch_end"],
)
@pytest.mark.parametrize("restored", [False, True])
def test_after_ctrl_c_in_validation_training_goes_on_from_the_raw_weights(
    hook, restored
):
    model, ema, samples = (
        compiled(models.batch_norm(), "sgd"),
        EMA(0.9),
        Samples(),
    )
    with contextlib.suppress(KeyboardInterrupt):
        fit(
            model,
            samples,
            ema,
            Fail(KeyboardInterrupt, hook),
            validation_data=(X, Y),
        )
    if restored:
        ema.restore()
        assert equal(model.get_weights(), samples.weights[-1])
    begun = Samples()
    fit(model, begun, ema, validation_data=(X, Y))
    assert equal(begun.initial, samples.weights[-1])
    assert_average(ema, samples.weights + begun.weights)


def test_after_an_exception_in_a_batch_training_goes_on():
    model, ema, samples = compiled(models.dense(), "sgd"), EMA(0.9), Samples()
    with pytest.raises(RuntimeError):
        fit(model, samples, ema, Fail(RuntimeError, "on_train_batch_end"))
    begun = Samples()
    fit(model, begun, ema)
    assert_average(ema, samples.weights + begun.weights)


def test_an_evaluation_after_an_aborted_fit_swaps_in_and_out():
    model, ema = compiled(models.dense()), EMA(0.9)
    with pytest.raises(RuntimeError):
        fit(model, ema, Fail(RuntimeError, "on_train_batch_begin"))
    with pytest.raises(RuntimeError):
        fit(model, ema, Fail(RuntimeError, "on_epoch_end"))
    ema.restore()
    raw = model.get_weights()
    score(model, ema)
    assert equal(model.get_weights(), raw)


def test_a_bare_callback_is_refused_or_averaged_and_nothing_is_lost():
    """On JAX and torch Keras would call it from other threads."""
    model, ema = compiled(models.dense()), EMA(0.9)
    if keras.config.backend() == "tensorflow":
        model.fit(X, Y, epochs=2, verbose=0, callbacks=ema)
        assert equal(model.get_weights(), as_in_model(ema.get_weights(), model))
    else:
        with pytest.raises(RuntimeError, match=r"callbacks=\[EMA"):
            model.fit(X, Y, epochs=2, verbose=0, callbacks=ema)
    samples, ema = Samples(), EMA(0.9)
    fit(model, samples, ema)
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


def test_a_look_at_the_average_in_mid_epoch_leaves_training_undisturbed():
    model, samples, ema = compiled(models.batch_norm()), Samples(), EMA(0.9)
    fit(model, samples, ema, EvaluateInTheMiddle(ema))
    plain, keep = compiled(models.batch_norm()), Samples()
    fit(plain, keep)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, samples.weights)


class LoadAtEpochEnd(keras.callbacks.Callback):
    """Replaces the weights between epochs, as a restart from the best does."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace."""
        if epoch == 0:
            self.loaded = [w * 0.9 for w in self.model.get_weights()]
            self.model.set_weights(self.loaded)


def test_weights_that_a_callback_replaces_between_epochs_count():
    model, ema, load = (
        compiled(models.dense(), "sgd"),
        EMA(0.9),
        LoadAtEpochEnd(),
    )
    plain, keep = compiled(models.dense(), "sgd"), Samples()
    samples = Samples()
    fit(model, samples, ema, load, shuffle=False)
    plain.set_weights(load.loaded)
    fit(plain, keep, epochs=1, shuffle=False)
    assert equal(samples.weights[-1], keep.weights[-1])
    assert_average(ema, keep.weights)


def test_one_callback_keeps_an_average_of_each_of_two_models():
    first, second = compiled(models.dense()), compiled(models.batch_norm())
    ema = EMA(0.9)
    samples = Samples(), Samples()
    fit(first, samples[0], ema)
    fit(second, samples[1], ema)
    assert_average(ema, samples[1].weights)
    score(first, ema)
    assert_average(ema, samples[0].weights)
    fit(first, samples[0], ema)
    assert_average(ema, samples[0].weights)


def test_a_layer_added_between_two_fits_begins_a_new_average():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ema, samples = EMA(0.9), Samples()
    fit(compiled(model), ema)
    model.add(keras.layers.Dense(1))
    fit(compiled(model), samples, ema)
    assert_average(ema, samples.weights)


def test_a_recompiled_model_goes_on_averaging():
    model, ema, samples = compiled(models.dense()), EMA(0.9), Samples()
    fit(model, samples, ema)
    fit(compiled(model, "sgd"), samples, ema)
    assert_average(ema, samples.weights)


class Poison(keras.callbacks.Callback):
    """Makes one element of one weight NaN or infinite after some steps."""

    def __init__(self, steps: set[int], value: float) -> None:
        super().__init__()
        self.steps = steps
        self.value = value
        self.count = 0
        self.kept: list[numpy.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Poison the weights, before the average sees them."""
        if self.count in self.steps:
            weights = self.model.get_weights()
            weights[0].flat[-1] = self.value
            self.model.set_weights(weights)
        self.count += 1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Heal them, so that training goes on."""
        weights = self.model.get_weights()
        if not numpy.isfinite(weights[0]).all():
            weights[0].flat[-1] = 0.0
            self.model.set_weights(weights)


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
@pytest.mark.parametrize("kind", ["dense", "batch_norm"])
def test_a_step_that_is_not_finite_is_left_out_counted_and_warned_of_once(
    value, kind, recwarn
):
    model, samples, ema = compiled(models.KINDS[kind]()), Samples(), EMA(0.9)
    fit(model, Poison({0, 4, 8}, value), samples, ema, epochs=3)
    good = [w for i, w in enumerate(samples.weights) if i not in {0, 4, 8}]
    assert ema.skipped == 3
    assert_average(ema, good)
    warned = [w for w in recwarn if "NaN or infinite" in str(w.message)]
    assert len(warned) == 1


def test_a_step_that_is_not_finite_leaves_the_average_as_it_was():
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    ema.restore()
    before = ema.get_weights()
    weights = model.get_weights()
    model.set_weights([w * numpy.nan for w in weights])
    ema.update()
    assert equal(ema.get_weights(), before)
    assert ema.skipped == 1


def test_large_finite_weights_are_averaged():
    model = compiled(models.batch_norm())
    ema = EMA(0.9)
    ema.set_model(model)
    large = [numpy.full_like(w, 1e15) for w in model.get_weights()]
    model.set_weights(large)
    ema.update()
    assert ema.skipped == 0
    for got, expected in zip(ema.get_weights(), large, strict=True):
        # A GPU divides with an error in the last digit.
        numpy.testing.assert_allclose(got, expected, rtol=1e-6)


def test_an_average_that_never_began_leaves_raw_weights_and_says_so():
    model, ema, samples = (
        compiled(models.dense()),
        EMA(0.9, start=1000),
        Samples(),
    )
    with pytest.warns(UserWarning, match="made no average"):
        fit(model, samples, ema)
    assert equal(model.get_weights(), samples.weights[-1])


def test_a_loop_with_a_callback_list_is_averaged_as_a_fit():
    model, ema, walk = compiled(models.batch_norm()), EMA(0.9), []
    callbacks = keras.callbacks.CallbackList([ema], model=model)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(5):
            callbacks.on_train_batch_begin(batch)
            model.train_on_batch(X[:BATCH], Y[:BATCH])
            walk.append(model.get_weights())
            callbacks.on_train_batch_end(batch)
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()
    assert_average(ema, walk)
    assert equal(model.get_weights(), as_in_model(ema.get_weights(), model))


def test_a_model_that_is_gone_needs_no_raw_weights():
    first, second, ema = (
        compiled(models.dense()),
        compiled(models.lazy()),
        EMA(0.9),
    )
    fit(first, ema)
    ema.set_model(second)
    del first
    keras.utils.clear_session()
    gc.collect()
    ema.restore()


def test_another_model_chosen_before_training_has_its_own_textbook_average():
    first, second = compiled(models.dense()), compiled(models.batch_norm())
    ema = EMA(0.9, bias_correction=False)
    ema.set_model(first)
    ema.set_model(second)
    initial = second.get_weights()
    second.train_on_batch(X[:BATCH], Y[:BATCH])
    ema.update()
    expected = reference.ema([second.get_weights()], 0.9, initial=initial)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_a_loop_after_a_fit_with_another_average_trains_undisturbed():
    model, fitted, ema = compiled(models.dense()), EMA(0.9), EMA(0.5)
    fit(model, fitted)
    ema.set_model(model)
    walk = []
    for _ in range(4):
        model.train_on_batch(X[:BATCH], Y[:BATCH])
        walk.append(model.get_weights())
        ema.update()
        assert equal(model.get_weights(), walk[-1])
    assert_average(ema, walk)


def test_an_evaluation_cut_short_does_not_change_the_next_fit():
    model, ema = compiled(models.dense()), EMA(0.9, bias_correction=False)
    fit(model, ema)
    ema.restore()
    with pytest.raises(KeyboardInterrupt):
        score(model, ema, Fail(KeyboardInterrupt, "on_test_batch_end"))
    ema.restore()
    spy = Spy(ema)
    fit(model, spy, ema, validation_data=(X, Y))
    assert all(inside for hook, inside in spy.seen if hook in IN)
