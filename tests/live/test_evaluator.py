"""The scores of raw weights and of averages, side by side in one history."""

import csv
import functools
import itertools
from typing import Any, NamedTuple

import keras
import models
import numpy
import pytest
import reused
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, FGE, LAWA, SWA, SWAG, PowerEMA
from keras_wavg.callbacks.evaluator import AverageEvaluator

X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
ORDERS = list(itertools.permutations(range(4)))[::8]
WEIGHTS = numpy.linspace(0, 1, len(X_VAL), dtype="float32")
BACKEND = keras.config.backend()


@pytest.fixture
def dense():
    return reused.dense()


@pytest.fixture(scope="module")
def aborted():
    """A model whose training may be aborted."""
    return compiled(models.dense())


def evaluator(*averages, **options):
    return AverageEvaluator(X_VAL, Y_VAL, averages=averages, **options)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(
        X, Y, epochs=epochs, callbacks=[*callbacks], **options
    ).history


@functools.cache
def scorer(build):
    """A model that measures the weights of other models."""
    return compiled(build())


def score_of(weights, build=models.dense):
    model = scorer(build)
    model.set_weights(weights)
    return score(model)


def score(model):
    """The result of `evaluate`, computed faster in one batch."""
    model.reset_metrics()
    return float(model.test_on_batch(X_VAL, Y_VAL))


def saved_score(path):
    model = scorer(models.dense)
    model.load_weights(path)
    return score(model)


def test_each_width_of_a_power_function_average_has_its_score(dense, tmp_path):
    power = PowerEMA((0.05, 0.2), snapshot_dir=tmp_path)
    history = fit(dense, power, evaluator(power))
    assert sorted(key for key in history if key.startswith("power")) == [
        "power_ema_0.05_val_loss",
        "power_ema_0.2_val_loss",
    ]
    for width in power.sigma_rel:
        for epoch, score in enumerate(history[f"power_ema_{width}_val_loss"]):
            name = f"sigma_{width}-{epoch + 1:05}.weights.h5"
            expected = saved_score(tmp_path / name)
            assert score == pytest.approx(expected, rel=1e-5)


class EpochEnds(keras.callbacks.Callback):
    """Records the weights of the model and the averages after each epoch."""

    def __init__(self, *averages: Any) -> None:
        super().__init__()
        self.averages = averages
        self.model_weights: list[Any] = []
        self.averaged: list[Any] = []

    def on_epoch_end(self, epoch, logs=None):
        self.model_weights.append(self.model.get_weights())
        self.averaged.append([a.get_weights() for a in self.averages])


def averages():
    return [
        EMA(0.8),
        LAWA(2, swap=False),
        SWAG(every_steps=4, swap=False, batch_norm_data=X),
        FGE(cycle_steps=4),
    ]


def test_each_score_is_that_of_a_plain_model_with_the_same_weights():
    several, samples = averages(), Samples()
    ends = EpochEnds(*several)
    callbacks = [samples, *several, evaluator(*several), ends]
    options = {"validation_data": (X, Y), "validation_freq": 2}
    history = fit(reused.batch_norm(), *callbacks, **options)
    raw = samples.weights[5::6]
    expected = functools.partial(score_of, build=models.batch_norm)
    for epoch in range(2):
        assert history["raw_val_loss"][epoch] == expected(raw[epoch])
        for average, weights in zip(several, ends.averaged[epoch], strict=True):
            received = history[f"{average.name}_val_loss"][epoch]
            assert received == pytest.approx(expected(weights), rel=1e-6)


class Fitted(NamedTuple):
    history: dict[str, list[float]]
    rows: list[dict[str, str]]
    swapped: list[Any]
    kernels: list[Any]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Scores of several evaluators in one training, and its final weights."""
    ema = EMA(0.8)
    kernels = EMA(0.95, swap=False, name="kernels", include="kernel$")
    lawa = LAWA(start_epoch=2, swap=False)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    model = compiled(models.dense(), metrics=["mae"])
    history = fit(
        model,
        *(keras.callbacks.CSVLogger(path), ema, kernels, lawa),
        evaluator(ema, kernels, lawa),
        *(
            evaluator(ema, every_epochs=4, name=name, **options)
            for name, options in OPTIONS.items()
        ),
        epochs=4,
        validation_data=(X_VAL, Y_VAL),
        validation_batch_size=32,
    )
    ema.restore()
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return Fitted(history, rows, ema.get_weights(), kernels.get_weights())


OPTIONS = {
    "fives": {"batch_size": 5},
    "few": {"batch_size": 5, "steps": 3},
    "weighted": {"sample_weight": WEIGHTS},
}


def test_excluded_weights_are_raw_while_another_average_is_swapped_in(
    fitted,
):
    received = fitted.history["kernels_val_loss"][-1]
    assert received == pytest.approx(score_of(fitted.kernels), rel=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_evaluate(fitted, name):
    received = fitted.history[f"ema_{name}_loss"][-1]
    model = scorer(models.dense)
    model.set_weights(fitted.swapped)
    expected = model.evaluate(X_VAL, Y_VAL, verbose=0, **OPTIONS[name])
    assert received == pytest.approx(expected, rel=1e-6)


def test_the_score_of_the_swapped_average_is_that_of_validation(fitted):
    history = fitted.history
    assert history["val_loss"] == history["ema_val_loss"]
    assert history["val_loss"] != history["raw_val_loss"]


def test_every_metric_has_a_column_from_the_first_epoch(fitted):
    averages = {
        "val": ["raw", "ema", "kernels", "lawa"],
        **{name: ["raw", "ema"] for name in OPTIONS},
    }
    columns = ["", "val_"]
    columns += [f"{w}_{name}_" for name, of in averages.items() for w in of]
    expected = {f"{c}{m}" for c in columns for m in ("loss", "mae")}
    assert set(fitted.history) == expected
    for key in expected:
        logged = [float(row[key]) for row in fitted.rows]
        numpy.testing.assert_array_equal(logged, fitted.history[key])


def test_before_its_first_update_an_average_has_the_raw_score(fitted):
    raw, averaged = (
        fitted.history[f"{key}_val_loss"] for key in ("raw", "lawa")
    )
    # After one sample, the mean is that sample.
    same = numpy.equal(raw, averaged).tolist()
    assert same == [True, True, True, False]


def test_scores_are_nan_in_epochs_without_an_evaluation(fitted):
    for key in ("raw", "ema"):
        values = fitted.history[f"{key}_few_loss"]
        measured = [not numpy.isnan(value) for value in values]
        assert measured == [True, False, False, True]


class Metrics(keras.callbacks.Callback):
    """Records metrics and random seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch, logs=None):
        weights = set(map(id, self.model.weights))
        variables = [*self.model.variables, *self.model.metrics_variables]
        self.seen.append(
            [
                keras.ops.convert_to_numpy(keras.ops.copy(variable.value))
                for variable in variables
                if id(variable) not in weights
            ]
        )


class AlwaysDropout(keras.layers.Layer):
    """Draws random numbers in evaluations too."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5, seed=3)

    def call(self, inputs):
        return self.dropout(inputs, training=True)


@models.seeded
def monte_carlo():
    return keras.Sequential(
        [keras.Input((4,)), AlwaysDropout(), keras.layers.Dense(1)]
    )


@pytest.mark.parametrize(
    "build",
    [reused.batch_norm, reused.Reused(monte_carlo)],
    ids=["batch_norm", "draws in evaluations"],
)
def test_an_evaluator_changes_neither_training_nor_its_final_weights(build):
    received = []
    validation = {"validation_data": (X, Y), "validation_freq": 2}
    for evaluated in (False, True):
        ema, lawa = EMA(0.8), LAWA(swap=False)
        samples, metrics, ends = Samples(), Metrics(), EpochEnds(ema, lawa)
        model = build()
        extra = [evaluator(ema, lawa)] if evaluated else []
        callbacks = [samples, ema, lawa, *extra, metrics, ends]
        history = fit(model, *callbacks, **validation)
        fit(model, *callbacks, epochs=1)
        kept = {k: v for k, v in history.items() if "_val_" not in k}
        raw = samples.losses, samples.weights[-1]
        received.append((raw, kept, metrics, ends, model.get_weights()))
    raw, kept, metrics, ends, weights = received[0]
    raw_2, kept_2, metrics_2, ends_2, weights_2 = received[1]
    assert raw[0] == raw_2[0]
    assert equal(raw[1], raw_2[1])
    assert kept == kept_2
    assert equal(weights, weights_2)
    assert len(metrics.seen[0]) >= 2
    assert all(map(equal, metrics.seen, metrics_2.seen))
    assert all(map(equal, ends.model_weights, ends_2.model_weights))
    for one, other in zip(ends.averaged, ends_2.averaged, strict=True):
        assert all(map(equal, one, other))


def test_scores_are_right_when_steps_run_eagerly():
    several, samples = averages(), Samples()
    ends = EpochEnds(*several)
    model = compiled(models.batch_norm(), run_eagerly=True)
    callbacks = [samples, *several, evaluator(*several), ends]
    history = fit(model, *callbacks, epochs=1)
    scores = [history["raw_val_loss"][0]]
    scores += [history[f"{average.name}_val_loss"][0] for average in several]
    for score, weights in zip(
        scores, [samples.weights[-1], *ends.averaged[0]], strict=True
    ):
        expected = score_of(weights, models.batch_norm)
        assert score == pytest.approx(expected, rel=1e-5)


# With this large learning rate the best epoch comes early.
unsteady = reused.Reused(models.dense, lambda: keras.optimizers.SGD(0.4))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_logged_score_the_file_and_the_restored_model_agree(
    order, tmp_path
):
    ema, options = EMA(0.8), {"monitor": "ema_val_loss", "mode": "min"}
    path = tmp_path / "best.weights.h5"
    callbacks = [
        ema,
        evaluator(ema),
        keras.callbacks.ModelCheckpoint(
            path, save_best_only=True, save_weights_only=True, **options
        ),
        keras.callbacks.EarlyStopping(
            patience=1, restore_best_weights=True, **options
        ),
    ]
    model = unsteady()
    history = fit(model, *(callbacks[i] for i in order), epochs=12)
    best = min(history["ema_val_loss"])
    assert history["ema_val_loss"].index(best) == len(history["loss"]) - 2
    assert saved_score(path) == pytest.approx(best, rel=1e-6)
    assert score_of(model.get_weights()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("position", [0, 2])
def test_without_swap_the_best_raw_weights_are_saved(position, tmp_path):
    ema, path = EMA(0.8, swap=False, name="ema"), tmp_path / "best.weights.h5"
    callbacks = [
        ema,
        keras.callbacks.ModelCheckpoint(
            path,
            monitor="raw_val_loss",
            mode="min",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]
    callbacks.insert(position, evaluator(ema))
    history = fit(unsteady(), *callbacks)
    best = min(history["raw_val_loss"])
    assert saved_score(path) == pytest.approx(best, rel=1e-6)
    assert history["ema_val_loss"][-1] != history["raw_val_loss"][-1]


def test_an_average_that_starts_late_can_still_be_the_best(dense, tmp_path):
    swa, path = SWA(2), tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path,
        monitor="swa_val_loss",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    scores = fit(dense, best, swa, evaluator(swa), epochs=3)["swa_val_loss"]
    assert min(scores) == scores[2]
    assert saved_score(path) == pytest.approx(min(scores), rel=1e-6)


def test_with_data_of_unknown_length_the_order_does_not_matter():
    received = []
    for order in (1, -1):
        several = [EMA(0.8), LAWA(swap=False)]
        callbacks = [*several, evaluator(*several)][::order]
        model, ends = reused.dense(), EpochEnds(*several)
        histories = [
            model.fit(
                models.generator(5), verbose=0, callbacks=[*callbacks, ends]
            ).history
            for _ in range(2)
        ]
        received.append(histories)
        for history, (ema, lawa) in zip(histories, ends.averaged, strict=True):
            assert history["ema_val_loss"] == pytest.approx([score_of(ema)])
            assert history["lawa_val_loss"] == pytest.approx([score_of(lawa)])
    assert received[0] == received[1]


def test_a_second_fit_continues_with_the_same_callbacks(dense):
    ema, again = EMA(0.8), EMA(0.8)
    callbacks = [ema, evaluator(ema)]
    first = fit(dense, *callbacks, shuffle=False, epochs=1)
    second = fit(dense, *callbacks, shuffle=False, epochs=1)
    assert second["ema_val_loss"][-1] == score_of(dense.get_weights())
    callbacks = [again, evaluator(again)]
    whole = fit(reused.dense(), *callbacks, shuffle=False)
    key = "raw_val_loss"
    assert first[key] + second[key] == whole[key]


@pytest.mark.skipif(
    BACKEND == "torch", reason="torch has no `steps_per_execution`"
)
def test_scores_are_right_with_steps_per_execution(dense):
    received = []
    for model in (dense, compiled(models.dense(), steps_per_execution=4)):
        ema = EMA(0.8)
        history = fit(model, ema, evaluator(ema, batch_size=5), shuffle=False)
        expected = score_of(model.get_weights())
        assert history["ema_val_loss"][-1] == pytest.approx(expected, rel=1e-6)
        received.append(history["raw_val_loss"])
    assert received[0] == pytest.approx(received[1], rel=1e-6)


class Stop(keras.callbacks.Callback):
    """Stops training in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.model.stop_training = True


def test_an_epoch_that_is_stopped_early_is_evaluated(dense):
    ema, samples = EMA(0.8), Samples()
    history = fit(dense, Stop(), samples, ema, evaluator(ema))
    assert history["raw_val_loss"] == [score_of(samples.weights[-1])]
    assert history["ema_val_loss"] == [score_of(dense.get_weights())]


class Counted(models.Subclassed):
    """Counts its calls from Python."""

    calls = 0

    def call(self, inputs, training=False):
        self.calls += 1
        return super().call(inputs, training=training)


def test_a_model_built_by_its_first_batch_compiles_evaluation_once():
    model, ema, lawa = compiled(Counted()), EMA(0.8), LAWA(swap=False)
    callbacks = [ema, lawa, evaluator(ema, lawa)]
    fit(model, *callbacks, epochs=1)
    traced = model.calls
    history = fit(model, *callbacks)
    # On torch, Python runs every batch.
    assert (model.calls == traced) == (BACKEND != "torch")
    assert history["ema_val_loss"][-1] == pytest.approx(score(model), rel=1e-6)


class Batches(keras.utils.PyDataset):
    """Batches by index."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return X_VAL[part], Y_VAL[part]


def tf_data():
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices((X_VAL, Y_VAL))
    return whole.filter(lambda x, y: True).batch(BATCH)


def loader():
    from torch import from_numpy
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(
        TensorDataset(from_numpy(X_VAL), from_numpy(Y_VAL)), BATCH
    )


KINDS_OF_DATA = {
    "arrays": lambda: (X_VAL, Y_VAL),
    "PyDataset": lambda: (Batches(),),
}
if BACKEND == "tensorflow":
    KINDS_OF_DATA["of-unknown-length"] = lambda: (tf_data(),)
if BACKEND == "torch":
    KINDS_OF_DATA["DataLoader"] = lambda: (loader(),)


@pytest.mark.filterwarnings("error::UserWarning")
def test_data_may_be_anything_that_can_be_iterated_again(dense):
    ema = EMA(0.8)
    evaluators = [
        AverageEvaluator(*arguments(), averages=[ema], name=name)
        for name, arguments in KINDS_OF_DATA.items()
    ]
    history = fit(dense, ema, *evaluators, epochs=1)
    expected = score_of(dense.get_weights())
    for name in KINDS_OF_DATA:
        received = history[f"ema_{name}_loss"][-1]
        assert received == pytest.approx(expected, rel=1e-6)


class Failing(Batches):
    """Raises an error at a batch while `fails` is set."""

    fails = False

    def __init__(self, error, at):
        super().__init__()
        self.error = error
        self.at = at

    def __getitem__(self, index):
        if self.fails and index == self.at:
            raise self.error
        return super().__getitem__(index)


class FailLater(keras.callbacks.Callback):
    """Makes the data raise an error in the second epoch."""

    def __init__(self, failing):
        super().__init__()
        self.failing = failing

    def on_epoch_begin(self, epoch, logs=None):
        self.failing.fails = epoch == 1


def test_training_continues_after_an_error_in_an_evaluation(aborted):
    ema = EMA(0.8)
    for error, at, options in [
        (KeyError, 0, {}),
        (KeyError, 2, {}),
        # After validation, too.
        (KeyboardInterrupt, 0, {"validation_data": (X, Y)}),
    ]:
        failing, samples = Failing(error("no data"), at), Samples()
        scores = AverageEvaluator(failing, averages=[ema])
        callbacks = [samples, ema, FailLater(failing), scores]
        # TensorFlow wraps the error in another one.
        with pytest.raises((error, Exception), match="no data"):
            fit(aborted, *callbacks, **options)
        averaged = [
            numpy.asarray(w, v.dtype)
            for w, v in zip(
                ema.get_weights(), aborted.get_weights(), strict=True
            )
        ]
        assert equal(aborted.get_weights(), averaged)
        ema.restore()
        assert equal(aborted.get_weights(), samples.weights[-1])
        failing.fails, again = False, Samples()
        fit(aborted, again, ema, scores, epochs=1)
        assert equal(again.initial, samples.weights[-1])
        assert len(again.weights) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": iter([X])}, "`x` must be data .* an iterator. Pass arrays"),
        ({"averages": []}, r"a list of at least one .* averages=\[\]"),
        ({"averages": EMA()}, "a list of at least one .* averages=<EMA"),
        (
            {"averages": [keras.callbacks.History()]},
            "must be averaging callbacks, .* Received: <keras.*History",
        ),
        (
            {"averages": [EMA(), EMA(0.9)]},
            r"different names, .* EMA\(name='ema'\), EMA\(name='ema'\). Pass",
        ),
        ({"averages": [EMA(name="raw")]}, "none may be 'raw'. Received: EMA"),
        ({"every_epochs": 0}, "`every_epochs` must be an integer >= 1"),
        ({"steps": 0}, "`steps` must be an integer >= 1. Received: steps=0"),
        ({"batch_size": "8"}, "`batch_size` must .* batch_size='8'"),
        ({"name": "a/b"}, "`name` must be a string .* name='a/b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_a_bad_argument_is_refused(arguments, message):
    defaults = {"x": X_VAL, "y": Y_VAL, "averages": [EMA()]}
    with pytest.raises(ValueError, match=message):
        AverageEvaluator(**defaults | arguments)


def test_an_average_that_is_not_in_fit_is_refused_before_training(dense):
    ema, swa = EMA(0.8), SWA()
    before = dense.get_weights()
    message = r"same `fit`. Received: SWA\(name='swa'\), not in `callbacks`"
    with pytest.raises(ValueError, match=message):
        fit(dense, evaluator(ema, swa), ema)
    assert equal(dense.get_weights(), before)


def test_a_second_evaluator_of_the_same_name_is_refused(dense):
    ema = EMA(0.8)
    with pytest.raises(ValueError, match=r"several with name='val'. Pass"):
        fit(dense, ema, evaluator(ema), evaluator(ema))


def test_in_evaluate_an_evaluator_does_nothing(dense):
    ema = EMA(0.8)
    scores = evaluator(ema)
    fit(dense, ema, scores, epochs=1)
    expected = score_of(dense.get_weights())
    options = {"verbose": 0, "callbacks": [ema, scores]}
    assert dense.evaluate(X_VAL, Y_VAL, **options) == expected
