"""The scores of raw weights and of averages, side by side in one history."""

import csv
import itertools
from typing import Any

import keras
import models
import numpy
import pytest
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, FGE, LAWA, SWA, SWAG, PowerEMA
from keras_wavg.callbacks.evaluator import AverageEvaluator

X, Y = data(6)
X_VAL, Y_VAL = data(4, seed=1)
ORDERS = list(itertools.permutations(range(4)))[::8]
WEIGHTS = numpy.linspace(0, 1, len(X_VAL), dtype="float32")
BACKEND = keras.config.backend()
with_and_without_validation = pytest.mark.parametrize(
    "validation",
    [{}, {"validation_data": (X, Y)}],
    ids=["without", "with validation"],
)


def evaluator(*averages, **options):
    return AverageEvaluator(X_VAL, Y_VAL, averages=averages, **options)


def fit(model, *callbacks, epochs=3, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(
        X, Y, epochs=epochs, callbacks=[*callbacks], **options
    ).history


def model_of(kind=models.batch_norm, **options):
    return compiled(kind(), keras.optimizers.Adam(0.03), **options)


def score_of(weights, **options):
    model = model_of()
    model.set_weights(weights)
    return model.evaluate(X_VAL, Y_VAL, verbose=0, **options)


def saved_score(path):
    model = model_of()
    model.load_weights(path)
    return model.evaluate(X_VAL, Y_VAL, verbose=0)


def test_each_width_of_a_power_function_average_has_its_score(tmp_path):
    power = PowerEMA((0.05, 0.2), snapshots=tmp_path)
    history = fit(model_of(), power, evaluator(power), validation_data=(X, Y))
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
    """Records what the model and the averages hold at the ends of epochs."""

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
        SWAG(every_steps=4, swap=False, bn_data=X),
        FGE(cycle_steps=4),
    ]


@with_and_without_validation
def test_each_score_is_that_of_the_weights_set_by_hand(validation):
    several, samples = averages(), Samples()
    ends = EpochEnds(*several)
    callbacks = [samples, *several, evaluator(*several), ends]
    history = fit(model_of(), *callbacks, **validation)
    raw = samples.weights[5::6]
    for epoch in range(3):
        assert history["raw_val_loss"][epoch] == score_of(raw[epoch])
        for average, weights in zip(several, ends.averaged[epoch], strict=True):
            expected = score_of(weights)
            received = history[f"{average.name}_val_loss"][epoch]
            assert received == pytest.approx(expected, rel=1e-6)


def test_what_an_average_leaves_out_is_raw_while_another_is_in_the_model():
    ema = EMA(0.8)
    kernels = EMA(0.95, swap=False, name="kernels", include="kernel$")
    samples, model = Samples(), model_of()
    history = fit(model, samples, ema, kernels, evaluator(ema, kernels))
    ema.restore()
    expected = score_of(kernels.get_weights())
    received = history["kernels_val_loss"][-1]
    assert received == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 5},
        {"batch_size": 5, "steps": 3},
        {"sample_weight": WEIGHTS},
    ],
    ids="-".join,
)
def test_options_are_those_of_evaluate(options):
    model, ema = model_of(), EMA(0.8)
    history = fit(model, ema, evaluator(ema, **options))
    expected = score_of(model.get_weights(), **options)
    assert history["ema_val_loss"][-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "validation"),
    [
        *((kind, {}) for kind in models.KINDS),
        ("batch_norm", {"validation_data": (X, Y)}),
    ],
    ids=[*models.KINDS, "with validation"],
)
def test_training_and_what_it_ends_on_are_the_same_without_it(kind, validation):
    received = []
    for evaluated in (False, True):
        ema, slow = EMA(0.8), EMA(0.95, swap=False)
        samples, ends = Samples(), EpochEnds(ema, slow)
        model = model_of(models.KINDS[kind], metrics=["mae"])
        extra = [evaluator(ema, slow)] if evaluated else []
        callbacks = [samples, ema, slow, *extra, ends]
        history = fit(model, *callbacks, **validation)
        fit(model, *callbacks, **validation)
        kept = {k: v for k, v in history.items() if "_val_" not in k}
        raw = samples.losses, samples.weights[-1]
        received.append((raw, kept, ends, model.get_weights()))
    (raw, kept, ends, weights), (raw_2, kept_2, ends_2, weights_2) = received
    assert raw[0] == raw_2[0]
    assert equal(raw[1], raw_2[1])
    assert kept == kept_2
    assert equal(weights, weights_2)
    assert all(map(equal, ends.model_weights, ends_2.model_weights))
    for one, other in zip(ends.averaged, ends_2.averaged, strict=True):
        assert all(map(equal, one, other))


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


@with_and_without_validation
def test_metrics_and_seeds_are_left_as_they_were(validation):
    seen = []
    for evaluated in (False, True):
        ema, metrics, samples = EMA(0.8), Metrics(), Samples()
        extra = [evaluator(ema)] if evaluated else []
        fit(model_of(monte_carlo), ema, *extra, metrics, samples, **validation)
        seen.append((metrics.seen, samples.losses))
    assert len(seen[0][0][0]) >= 3
    assert all(map(equal, seen[0][0], seen[1][0]))
    assert seen[0][1] == seen[1][1]


def test_scores_are_right_when_steps_run_eagerly():
    several, samples = averages(), Samples()
    ends = EpochEnds(*several)
    model = model_of(run_eagerly=True)
    callbacks = [samples, *several, evaluator(*several), ends]
    history = fit(model, *callbacks, epochs=1)
    raw = samples.weights[-1]
    assert history["raw_val_loss"][0] == pytest.approx(score_of(raw), rel=1e-5)
    for average, weights in zip(several, ends.averaged[0], strict=True):
        expected = pytest.approx(score_of(weights), rel=1e-5)
        assert history[f"{average.name}_val_loss"][0] == expected


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_logged_score_file_and_restored_model_are_the_same_weights(
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
            patience=2, restore_best_weights=True, **options
        ),
    ]
    model = model_of()
    history = fit(model, *(callbacks[i] for i in order), epochs=12)
    best = min(history["ema_val_loss"])
    assert history["ema_val_loss"].index(best) == len(history["loss"]) - 3
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
    history = fit(model_of(), *callbacks, epochs=6)
    best = min(history["raw_val_loss"])
    assert saved_score(path) == pytest.approx(best, rel=1e-6)
    assert history["ema_val_loss"][-1] != history["raw_val_loss"][-1]


def test_the_score_of_the_swapped_average_is_that_of_validation():
    ema = EMA(0.8)
    options = {"validation_data": (X_VAL, Y_VAL), "validation_batch_size": 32}
    history = fit(model_of(), ema, evaluator(ema), **options)
    assert history["val_loss"] == history["ema_val_loss"]
    assert history["val_loss"] != history["raw_val_loss"]


def test_every_metric_has_a_column_from_the_first_epoch_on(tmp_path):
    swa, path = SWA(2), tmp_path / "log.csv"
    log = keras.callbacks.CSVLogger(path)
    model = model_of(metrics=["mae"])
    history = fit(model, log, swa, evaluator(swa))
    expected = {"loss", "mae"} | {
        f"{w}_val_{m}" for w in ("raw", "swa") for m in ("loss", "mae")
    }
    assert set(history) == expected
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for key in expected:
        assert [float(row[key]) for row in rows] == history[key]


def test_before_its_first_update_an_average_scores_as_the_raw_weights():
    swa = SWA(2)
    history = fit(model_of(), swa, evaluator(swa), epochs=5)
    same = numpy.equal(history["raw_val_loss"], history["swa_val_loss"])
    # The first sample of SWA is its mean.
    assert same.tolist() == [True, True, True, False, False]


def test_an_average_that_begins_late_can_still_be_the_best(tmp_path):
    swa, path = SWA(2), tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path,
        monitor="swa_val_loss",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.002))
    scores = fit(model, best, swa, evaluator(swa))["swa_val_loss"]
    assert min(scores) == scores[2]
    assert saved_score(path) == pytest.approx(min(scores), rel=1e-6)


def test_epochs_between_evaluations_are_nan():
    ema, swa = EMA(0.8), SWA(0, swap=False)
    history = fit(model_of(), ema, swa, evaluator(ema, swa, every=3), epochs=7)
    for key in ("raw_val_loss", "ema_val_loss", "swa_riding_val_loss"):
        measured = [not numpy.isnan(value) for value in history[key]]
        assert measured == [True, False, True, False, False, True, False]


def test_two_evaluators_of_one_fit_have_their_own_names():
    ema = EMA(0.8)
    train = AverageEvaluator(X, Y, averages=[ema], name="train")
    history = fit(model_of(), ema, train, evaluator(ema))
    assert set(history) == {"loss"} | {
        f"{w}_{d}_loss" for w in ("raw", "ema") for d in ("train", "val")
    }


def test_with_data_of_unknown_length_the_order_does_not_matter():
    received = []
    for order in (1, -1):
        several = [EMA(0.8), SWA(0, swap=False)]
        callbacks = [*several, evaluator(*several)][::order]
        model, ends = model_of(), EpochEnds(*several)
        histories = [
            model.fit(
                models.generator(5), verbose=0, callbacks=[*callbacks, ends]
            ).history
            for _ in range(3)
        ]
        received.append(histories)
        for history, (ema, swa) in zip(histories, ends.averaged, strict=True):
            assert history["ema_val_loss"] == pytest.approx([score_of(ema)])
            assert history["swa_riding_val_loss"] == pytest.approx(
                [score_of(swa)]
            )
    assert received[0] == received[1]


def test_a_second_fit_goes_on_with_the_same_callbacks():
    model, ema, twice = model_of(), EMA(0.8), model_of()
    callbacks = [ema, evaluator(ema)]
    first = fit(model, *callbacks, shuffle=False, epochs=2)
    second = fit(model, *callbacks, shuffle=False, epochs=2)
    again = EMA(0.8)
    whole = fit(twice, again, evaluator(again), shuffle=False, epochs=4)
    key = "raw_val_loss"
    if BACKEND != "torch":  # Its `DataLoader` moves the seed.
        assert first[key] + second[key] == whole[key]
    assert second["ema_val_loss"][-1] == score_of(model.get_weights())


@pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses it there")
def test_with_several_steps_an_execution_the_scores_are_right():
    received = []
    for steps in (1, 4):
        model, ema = model_of(steps_per_execution=steps), EMA(0.8)
        history = fit(model, ema, evaluator(ema, batch_size=5), shuffle=False)
        expected = score_of(model.get_weights(), batch_size=5)
        assert history["ema_val_loss"][-1] == pytest.approx(expected, rel=1e-6)
        received.append(history["raw_val_loss"])
    assert received[0] == pytest.approx(received[1], rel=1e-6)


class Stop(keras.callbacks.Callback):
    """Stops in mid-epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.model.stop_training = True


def test_an_early_stop_in_mid_epoch_is_evaluated_too():
    model, ema, samples = model_of(), EMA(0.8), Samples()
    history = fit(model, Stop(), samples, ema, evaluator(ema))
    assert history["raw_val_loss"] == [score_of(samples.weights[-1])]
    assert history["ema_val_loss"] == [score_of(model.get_weights())]


class Counted(models.Subclassed):
    """Counts how often Python runs it."""

    calls = 0

    def call(self, inputs, training=False):
        self.calls += 1
        return super().call(inputs, training=training)


@pytest.mark.skipif(BACKEND == "torch", reason="torch is not traced")
def test_the_test_function_is_compiled_once():
    counts = []
    for epochs in (1, 5):
        model, ema, swa = model_of(Counted), EMA(0.8), SWA(swap=False)
        fit(model, ema, swa, evaluator(ema, swa), epochs=epochs)
        counts.append(model.calls)
    assert counts[0] == counts[1]


class Batches(keras.utils.PyDataset):
    """Batches by their number."""

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
    KINDS_OF_DATA["tf.data of unknown length"] = lambda: (tf_data(),)
if BACKEND == "torch":
    KINDS_OF_DATA["DataLoader"] = lambda: (loader(),)


@pytest.mark.parametrize("kind", KINDS_OF_DATA)
@pytest.mark.filterwarnings("error::UserWarning")
def test_all_that_can_be_gone_through_again_is_data(kind):
    model, ema = model_of(), EMA(0.8)
    scores = AverageEvaluator(*KINDS_OF_DATA[kind](), averages=[ema])
    history = fit(model, ema, scores)
    expected = score_of(model.get_weights())
    assert history["ema_val_loss"][-1] == pytest.approx(expected, rel=1e-6)


class Failing(Batches):
    """Fails at a batch, once it is told to."""

    fails = False
    at = 0

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if self.fails and index == self.at:
            raise self.error
        return super().__getitem__(index)


class FailLater(keras.callbacks.Callback):
    """Lets data fail in the second epoch."""

    def __init__(self, failing):
        super().__init__()
        self.failing = failing

    def on_epoch_begin(self, epoch, logs=None):
        self.failing.fails = epoch == 1


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    ("error", "validation"),
    [(KeyError, {}), (KeyboardInterrupt, {"validation_data": (X, Y)})],
    ids=["an error", "Ctrl-C after validation"],
)
def test_an_error_in_an_evaluation_loses_nothing(at, error, validation):
    model, ema, samples = model_of(), EMA(0.8), Samples()
    failing = Failing(error("my own"))
    failing.at = at
    scores = AverageEvaluator(failing, averages=[ema])
    callbacks = [samples, ema, FailLater(failing), scores]
    # TensorFlow wraps it in one of its own.
    with pytest.raises((error, Exception), match="my own"):
        fit(model, *callbacks, **validation)
    averaged = [
        numpy.asarray(w, v.dtype)
        for w, v in zip(ema.get_weights(), model.get_weights(), strict=True)
    ]
    assert equal(model.get_weights(), averaged)
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])
    failing.fails, count = False, len(samples.weights)
    fit(model, samples, ema, scores, epochs=1)
    assert len(samples.weights) == count + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": iter([X])}, "`x` must be data .* an iterator. Pass arrays"),
        ({"averages": []}, r"a list of at least one .* averages=\[\]"),
        ({"averages": EMA()}, "a list of at least one .* averages=<keras_wavg"),
        (
            {"averages": [keras.callbacks.History()]},
            "must be averaging callbacks, .* Received: <keras.*History",
        ),
        (
            {"averages": [EMA(), EMA(0.9)]},
            r"different names, .* EMA\(name='ema'\), EMA\(name='ema'\). Pass",
        ),
        ({"averages": [EMA(name="raw")]}, "none may be 'raw'. Received: EMA"),
        ({"every": 0}, "`every` must be an integer >= 1. Received: every=0"),
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


def test_an_average_that_is_not_in_fit_is_refused_before_training():
    model, ema, swa = model_of(), EMA(0.8), SWA()
    before = model.get_weights()
    message = r"same `fit`. Received: SWA\(name='swa'\), which is not in them"
    with pytest.raises(ValueError, match=message):
        fit(model, evaluator(ema, swa), ema)
    assert equal(model.get_weights(), before)


def test_a_second_evaluator_of_the_same_name_is_refused():
    ema = EMA(0.8)
    with pytest.raises(ValueError, match=r"several with name='val'. Pass"):
        fit(model_of(), ema, evaluator(ema), evaluator(ema))


def test_in_a_bare_evaluation_it_does_nothing():
    model, ema = model_of(), EMA(0.8)
    scores = evaluator(ema)
    fit(model, ema, scores)
    expected = score_of(model.get_weights())
    options = {"verbose": 0, "callbacks": [ema, scores]}
    assert model.evaluate(X_VAL, Y_VAL, **options) == expected
