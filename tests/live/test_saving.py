"""Keras saves the state of averages with the model, and restores it exactly."""

import copy
import functools
import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import h5py
import hypothesis
import hypothesis.strategies as st
import keras
import models
import numpy
import probe
import pytest
import reference
import reused
from models import BATCH, FILES, compiled, data, equal, fresh, save
from saving import (
    AVERAGES,
    PLANS,
    WITHOUT_AN_UPDATE,
    differing,
    full_state,
    make,
    make_several,
    random_walk,
    save_and_load_at_any_time,
    state,
    values,
    weights_of,
)

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, SwitchEMA, resume

X, Y = data(6)
DENSE_WITH_ADAM = reused.Reused(models.dense, "adam")
NESTED = reused.Reused(models.nested)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


# A file has an average that is swapped in as the weights of the model.
IN_MODEL = [
    *("default", "every_kernel", "on_the_host", "power_ema"),
    *("lawa", "swag", "fge", "bema"),
]


class Saved(NamedTuple):
    """The files and the states of a training.

    Args:
        directory: Path of a directory with the files `FILES`, and one file
            for each of `IN_MODEL`, saved while it was swapped in.
        shown: List of arrays, the weights of the model in `FILES`.
        before: The state that all files contain.
        after: The state after further training.
    """

    directory: Path
    shown: list
    before: dict
    after: dict


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Train with all averages, and an optimizer that has a state."""
    keras.config.set_dtype_policy("float32")
    directory = tmp_path_factory.mktemp("saved")
    model = fresh(models.dense, optimizer="adam")
    averages = make_several(AVERAGES, swapped="textbook")
    fit(model, *averages)
    shown = model.get_weights()
    for file in FILES:
        save(model, directory / file)
    before = full_state(model, *averages)
    for average in averages:
        if average.name in IN_MODEL:
            with average.applied():
                save(model, directory / f"{average.name}.weights.h5")
    fit(model, *averages)
    return Saved(directory, shown, before, full_state(model, *averages))


@pytest.mark.filterwarnings("ignore:.*made no average")
def test_training_continues_exactly_from_each_kind_of_file(saved):
    averages = make_several(AVERAGES, swapped="textbook")
    model = fresh(models.dense, *averages, optimizer="adam")
    for file in FILES:
        # Loading discards the training since the previous file.
        model.load_weights(saved.directory / file)
        assert equal(model.get_weights(), saved.shown)
        assert differing(full_state(model, *averages), saved.before) == []
        fit(model, *averages)
        assert differing(full_state(model, *averages), saved.after) == []
    without = {a.name for a in averages if not probe.counts(a).averaged}
    assert without == WITHOUT_AN_UPDATE
    # Training changed the state, so that equality is significant.
    assert set(differing(saved.before, saved.after)) == saved.before.keys()


@pytest.mark.parametrize("name", IN_MODEL)
def test_an_average_saved_while_swapped_in_is_swapped_in_by_loading(
    name, saved
):
    average, model = make(name), DENSE_WITH_ADAM()
    average.set_model(model)
    model.load_weights(saved.directory / f"{name}.weights.h5")
    assert probe.is_in_model(average)
    assert equal(model.get_weights(), average.get_weights())
    expected = {k: saved.before[k] for k in ("weights", "optimizer", name)}
    assert differing(full_state(model, average), expected) == []


@pytest.mark.parametrize(
    "step", [{"run_eagerly": True}, {"jit_compile": True}], ids=str
)
def test_training_continues_exactly_with_each_compile_option(step, tmp_path):
    if keras.config.backend() == "torch" and "jit_compile" in step:
        pytest.skip("torch.compile needs a C++ compiler")
    model, ema = compiled(models.dense(), **step), EMA(0.9)
    fit(model, ema, epochs=1)
    model.save_weights(tmp_path / "a.weights.h5")
    fit(model, ema, epochs=1)
    expected = full_state(model, ema)
    # The model has been trained further than the file.
    model.load_weights(tmp_path / "a.weights.h5")
    fit(model, ema, epochs=1)
    assert differing(full_state(model, ema), expected) == []


def built(kind, average):
    """A compiled model with all its weights, and an average of it."""
    model = compiled(models.KINDS[kind]())
    model(X[:1])
    model.optimizer.build(model.trainable_variables)
    average.set_model(model)
    return model


@pytest.mark.parametrize(
    "kind", ["batch_norm", "nested", "shared", "subclassed"]
)
def test_each_kind_of_model_and_file_saves_the_average(kind, tmp_path):
    # On the device the models differ only in weights too large to be packed.
    new = EMA if kind == "batch_norm" else functools.partial(BEMA, 2)
    average = new()
    model = built(kind, average)
    random_walk(model, average)
    average.apply()
    shown = model.get_weights()
    paths = [save(model, tmp_path / file) for file in FILES]
    expected = full_state(model, average)
    for path in paths:
        again = new()
        other = built(kind, again)
        other.load_weights(path)
        assert equal(other.get_weights(), shown)
        assert differing(full_state(other, again), expected) == []


@pytest.mark.parametrize("policy", ["float64", "bfloat16", "mixed_bfloat16"])
def test_loading_restores_each_dtype_bit_for_bit(policy, tmp_path):
    if policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("float64 is not enabled in JAX")
    keras.config.set_dtype_policy(policy)
    averages = EMA(0.9), BEMA(3)
    model = fresh(models.dense)
    random_walk(model, *averages)
    for held in (None, *averages):
        if held is not None:
            held.apply()
        shown = model.get_weights()
        path = save(model, tmp_path / "a.weights.h5")
        expected = full_state(model, *averages)
        again = EMA(0.9), BEMA(3)
        other = fresh(models.dense, *again)
        other.load_weights(path)
        in_model = [
            average.name for average in again if probe.is_in_model(average)
        ]
        assert in_model == ([] if held is None else [held.name])
        assert equal(other.get_weights(), shown)
        assert differing(full_state(other, *again), expected) == []


def average_bytes(path, name):
    with h5py.File(path) as file:
        stored = file[f"~wavg_{name}/vars"]
        return sum(d.nbytes for d in stored.values() if d.shape)


@pytest.mark.parametrize(
    ("name", "copies"),
    [
        ("default", 1),
        ("power_ema", 2),
        ("lawa", 3),
        ("bema", 3),
        ("swag", 4),
        # Three members and their mean.
        ("fge", 4),
    ],
)
def test_a_file_with_an_average_has_the_expected_size(name, copies, saved):
    """In copies of the weights, whether or not the average is swapped in."""
    size = copies * sum(w.nbytes for w in saved.shown)
    for file in ("a", name):
        assert (
            average_bytes(saved.directory / f"{file}.weights.h5", name) == size
        )


def test_a_model_without_an_average_loads_the_same_file(saved):
    plain = fresh(models.dense, optimizer="adam")
    for file in FILES:
        random_walk(plain)
        plain.load_weights(saved.directory / file)
        assert equal(plain.get_weights(), saved.shown)
    loaded = keras.models.load_model(saved.directory / "a.keras")
    assert equal(loaded.get_weights(), saved.shown)


def test_an_average_adds_no_layer_or_variable_to_the_model():
    model = NESTED()
    names = {v.path for v in model.variables}
    layers = list(model.layers)
    fit(model, LAWA())
    assert model.layers == layers
    assert {v.path for v in model.variables} == names
    assert not any("wavg" in v.path for v in model.variables)


class SaveEachBatch(keras.callbacks.Callback):
    """Saves like `BackupAndRestore(save_freq=1)`, each time to a new file."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory
        self.paths = []

    def save(self):
        self.paths.append(self.directory / f"{len(self.paths)}.weights.h5")
        self.model.save_weights(self.paths[-1])

    def on_train_batch_end(self, batch, logs=None):
        self.save()

    def on_epoch_end(self, epoch, logs=None):
        self.save()


def averages_at_various_times(swapped):
    """Averages updated at the end of an epoch of two batches, or within it.

    The one that overwrites the weights is last in alphabetical order, which is
    the order in a file.
    """
    return [
        BEMA(2, swap=False),
        FGE(2),
        LAWA(2, swap=swapped == "lawa", name="lawa"),
        SWAG(rank=2, every_steps=3, swap=False),
        SwitchEMA(
            0.9,
            bias_correction=False,
            switch_every_steps=1,
            swap=swapped == "switched",
            name="switched",
        ),
    ]


class SavedRuns(NamedTuple):
    """Runs that were saved at each batch, or never.

    Args:
        ends: Final states, by the position of the callback that saves.
        files: States loaded from each file, by the same position.
    """

    ends: dict
    files: dict


@pytest.fixture(scope="module", params=["lawa", "switched"])
def runs(request, tmp_path_factory):
    """Train two epochs, or one of unknown length."""
    swapped = request.param
    ends, files = {}, {}
    for position in ("first", "last", "never"):
        saver = SaveEachBatch(tmp_path_factory.mktemp(position))
        averages, model = averages_at_various_times(swapped), NESTED()
        callbacks = {
            "first": [saver, *averages],
            "last": [*averages, saver],
            "never": averages,
        }[position]
        if swapped == "lawa":
            model.fit(*data(2), BATCH, epochs=2, verbose=0, callbacks=callbacks)
        else:
            model.fit(models.generator(2), verbose=0, callbacks=callbacks)
        ends[position] = full_state(model, *averages)
        files[position] = [*loaded_states(saver.paths, swapped)]
    return SavedRuns(ends, files)


def loaded_states(paths, swapped):
    averages = averages_at_various_times(swapped)
    model = fresh(models.nested, *averages)
    for path in paths:
        model.load_weights(path)
        yield full_state(model, *averages)


def test_files_do_not_depend_on_the_order_of_the_callbacks(runs):
    first, last = runs.files["first"], runs.files["last"]
    for number, (one, other) in enumerate(zip(first, last, strict=True)):
        assert differing(one, other) == [], number
    assert len(first) in {3, 6}


def test_saving_at_each_batch_does_not_change_training(runs):
    for position in ("first", "last"):
        assert differing(runs.ends[position], runs.ends["never"]) == [], (
            position
        )


def test_saving_before_each_batch_does_not_change_the_average(tmp_path):
    class SaveBefore(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.save_weights(tmp_path / "a.weights.h5")

    model, samples = reused.dense(), models.Samples()
    lawa = LAWA(6, every_steps=1)
    fit(model, samples, lawa, SaveBefore(), epochs=1)
    expected = reference.mean(samples.weights)
    assert reference.relative_error(lawa.get_weights(), expected) < 1e-6


def test_averages_swapped_in_over_each_other_are_loaded_in_order(tmp_path):
    saved, loaded = (
        [LAWA(1, name="b"), LAWA(2, name="a"), BEMA(1, name="c")]
        for _ in range(2)
    )
    model, other = fresh(models.dense), fresh(models.dense, *loaded)
    random_walk(model, *saved)
    for average in saved:
        average.apply()
    other.load_weights(save(model, tmp_path / "a.weights.h5"))
    for pair in zip(saved[::-1], loaded[::-1], strict=True):
        assert equal(other.get_weights(), model.get_weights())
        for average in pair:
            average.restore()
    assert equal(other.get_weights(), model.get_weights())


def test_two_averages_of_one_name_are_refused():
    averages = EMA(0.5, swap=False), EMA(0.9, swap=False)
    with pytest.raises(ValueError, match=r"name='ema'\. Pass `name=`"):
        fit(compiled(models.dense()), *averages)


def test_training_saved_with_swap_continues_without_swap(tmp_path):
    model, samples = reused.dense(), models.Samples()
    fit(model, samples, EMA(0.9))
    path = save(model, tmp_path / "a.weights.h5")
    ema, again = EMA(0.9, swap=False), reused.dense()
    ema.set_model(again)
    again.load_weights(path)
    fit(again, samples, ema, epochs=1)
    assert equal(again.get_weights(), samples.weights[-1])
    expected = reference.ema(samples.weights, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_two_averages_of_one_name_are_refused_in_a_custom_training_loop():
    model, first, second = models.dense(), LAWA(1), LAWA(2)
    first.set_model(model)
    second.set_model(model)
    second.update()
    with pytest.raises(ValueError, match=r"name='lawa'\. Pass `name=`"):
        first.update()


def test_a_new_callback_replaces_the_average_of_the_same_name(tmp_path):
    model, bema, again = fresh(models.dense), BEMA(2), BEMA(2)
    random_walk(model, BEMA(1))
    random_walk(model, bema)
    path = save(model, tmp_path / "a.weights.h5")
    size = 3 * sum(w.nbytes for w in model.get_weights())
    assert average_bytes(path, "bema") == size
    fresh(models.dense, again).load_weights(path)
    assert equal(state(again), state(bema))


def test_loading_the_best_file_after_fit_swaps_its_average_in(tmp_path):
    class Best(keras.callbacks.ModelCheckpoint):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch == 1:
                self.shown = self.model.get_weights()
                self.state = state(ema)
                self.raw = probe.raw_weights(ema)
                self.optimizer = values(self.model.optimizer.variables)

    model, ema = DENSE_WITH_ADAM(), EMA(0.9)
    best = Best(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    fit(model, ema, best, epochs=3)
    assert not equal(state(ema), best.state)
    model.load_weights(tmp_path / "2.weights.h5")
    assert equal(model.get_weights(), best.shown)
    assert equal(ema.get_weights(), best.shown)
    assert equal(state(ema), best.state)
    assert equal(values(model.optimizer.variables), best.optimizer)
    ema.restore()
    assert equal(model.get_weights(), best.raw)


def test_the_average_of_a_custom_training_loop_is_saved_and_loaded(tmp_path):
    model, bema = models.dense(), BEMA(2)
    random_walk(model, bema, steps=5)
    path = save(model, tmp_path / "a.weights.h5")
    other, again = models.dense(), BEMA(2)
    again.set_model(other)
    other.load_weights(path)
    assert equal(state(again), state(bema))
    values = [w * 2 for w in model.get_weights()]
    for one, averaged in ((model, bema), (other, again)):
        one.set_weights(values)
        averaged.update()
    assert equal(state(again), state(bema))
    assert probe.counts(again).averaged == 3


def test_loading_a_file_without_an_average_warns_and_restarts_it(tmp_path):
    plain = fresh(models.dense)
    random_walk(plain)
    path = save(plain, tmp_path / "a.weights.h5")
    model = reused.dense()
    averages = make_several(["textbook", "lawa"], swapped="textbook")
    fit(model, *averages)
    with pytest.warns(UserWarning, match="the file has no average") as caught:
        model.load_weights(path)
    warned = [str(warning.message) for warning in caught]
    assert equal(model.get_weights(), plain.get_weights())
    for average in averages:
        assert any(
            f"'{average.name}' restarts: the file has" in w for w in warned
        )
        with pytest.raises(ValueError, match="no average before the first"):
            average.get_weights()
    samples = models.Samples()
    fit(model, samples, *averages, epochs=1)
    assert equal(samples.initial, plain.get_weights())
    textbook, lawa = (average.get_weights() for average in averages)
    expected = reference.ema(samples.weights, 0.9, initial=samples.initial)
    assert reference.relative_error(textbook, expected) < 1e-6
    assert equal(lawa, samples.weights[-1])


def quantized_with_adapters():
    """QLoRA: trained adapters on kernels of integers."""
    model = models.dense()
    model.quantize("int8")
    for layer in model.layers:
        layer.enable_lora(2)
    return compiled(model)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_an_average_of_adapters_on_quantized_kernels_restarts(tmp_path):
    """A file has only the sums of kernels and adapters."""
    path = tmp_path / "a.weights.h5"
    model, ema = quantized_with_adapters(), EMA(0.9)
    random_walk(model, ema)
    ema.restore()
    model.save_weights(path)
    other, again = quantized_with_adapters(), EMA(0.9)
    again.set_model(other)
    with pytest.warns(match="quantized kernels with their adapters"):
        other.load_weights(path)
    assert weights_of(again) == []
    plain = quantized_with_adapters()
    plain.load_weights(path)
    assert equal(other.predict(X, verbose=0), plain.predict(X, verbose=0))


def test_loading_a_legacy_file_warns(tmp_path):
    if keras.config.backend() == "torch":
        pytest.skip("legacy files need not be tested on each backend")
    path = tmp_path / "a.h5"
    compiled(models.dense()).save(path)
    model, lawa = fresh(models.dense), LAWA()
    random_walk(model, lawa)
    with pytest.warns(UserWarning, match="'lawa' restarts: the file has"):
        model.load_weights(path)
    assert weights_of(lawa) == []


def test_hooks_called_without_on_train_batch_begin_update_the_average():
    model, lawa = reused.dense(), LAWA(4, every_steps=1)
    callbacks = keras.callbacks.CallbackList([lawa], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    samples = []
    for batch in range(4):
        model.train_on_batch(X[:8], Y[:8])
        samples.append(model.get_weights())
        callbacks.on_train_batch_end(batch)
    expected = reference.mean(samples)
    assert reference.relative_error(lawa.get_weights(), expected) < 1e-6


def test_the_average_continues_from_weights_loaded_within_an_epoch(tmp_path):
    """The average excludes the batches that loading discards."""

    class Load(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 5:
                self.model.save_weights(tmp_path / "b.weights.h5")
                self.model.load_weights(tmp_path / "b.weights.h5")

        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.save_weights(tmp_path / "a.weights.h5")
            if batch == 3:
                self.model.load_weights(tmp_path / "a.weights.h5")

    for order in (1, -1):
        ema, samples = EMA(0.9), models.Samples()
        callbacks = [Load(), ema][::order]
        fit(reused.dense(), samples, *callbacks, epochs=1)
        kept = [samples.weights[i] for i in (0, 1, 4, 5)]
        expected = reference.ema(kept, 0.9)
        assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_a_model_can_be_saved_and_loaded_after_a_layer_was_added(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    random_walk(compiled(model), LAWA())
    model.add(keras.layers.Dense(1))
    path = save(model, tmp_path / "a.weights.h5")
    again = LAWA()
    again.set_model(model)
    model.load_weights(path)
    assert weights_of(again) == []


def test_copies_exports_and_summaries_of_the_model_work(tmp_path):
    model, lawa = compiled(models.dense()), LAWA()
    fit(model, lawa)
    model.summary(print_fn=lambda *_, **__: None)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301
        keras.models.clone_model(model),
    ):
        assert not any("wavg" in name for name in vars(other))
        other.set_weights(model.get_weights())
        fit(compiled(other), LAWA())
    if keras.config.backend() == "tensorflow":
        model.export(tmp_path / "exported", verbose=False)
    assert weights_of(lawa)


@hypothesis.given(
    plan=PLANS,
    # Averages on the device are compiled: `tests/slow` has the others.
    name=st.sampled_from(
        ["lawa_every_other_epoch", "swag", "fge", "bema", "every_kernel"]
    ),
)
def test_saving_and_loading_at_any_time_changes_nothing(
    plan, name, tmp_path_factory
):
    path = tmp_path_factory.mktemp("plan") / "a.weights.h5"
    save_and_load_at_any_time(plan, name, path)


# Invalid input


def edited(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file["~wavg_default/vars"])
    return path


def replace(group, key, value):
    del group[key]
    group[key] = value


def set_nan(dataset):
    array = dataset[()]
    array.flat[0] = numpy.nan
    dataset[...] = array


def replace_all(group):
    for key in list(group):
        del group[key]
    group["0"] = numpy.zeros(3)


EDITS = {
    "a count is missing": (
        lambda g: g.__delitem__("steps"),
        "must have the count `steps`",
    ),
    "a newer format": (
        lambda g: replace(g, "version", 4),
        "Received: version=4",
    ),
    "a count is not an integer": (
        lambda g: replace(g, "now", 1.5),
        "`now` of a saved average must be an integer",
    ),
    "a count is negative": (
        lambda g: replace(g, "last", -1),
        "`last` of a saved average must be an integer",
    ),
    "a count is too large": (
        lambda g: replace(g, "steps", 2**40),
        "`steps` of a saved average must be an integer in",
    ),
    "in the model before it started": (
        lambda g: replace(g, "begun", 0),
        "Received: raw weights and begun=0",
    ),
    "a count is a list": (
        lambda g: replace(g, "pending", [1, 2]),
        "`pending` of a saved average must be an integer",
    ),
    "another shape": (
        lambda g: replace(g, "raw_1", numpy.zeros(7, "float32")),
        r"'raw_1' must have the shape .*bias'.*shape \(7,\)",
    ),
    "another kind": (
        lambda g: replace(g, "raw_1", numpy.zeros(6, "int32")),
        "floating-point dtype.*Received: dtype int32",
    ),
    "raw weights are missing": (
        lambda g: g.__delitem__("raw_2"),
        "no 'average_2' for '.*kernel'",
    ),
    "an average is NaN where its weight is not": (
        lambda g: (
            g["raw_1"].write_direct(numpy.full(6, 2, "float32"))
            or set_nan(g.parent.parent["layers/dense/vars/1"])
        ),
        "'average_1' of .* with NaN",
    ),
    "counts are not ordered": (
        lambda g: replace(g, "last", 99),
        "must be `steps` <= `last` <= `now`",
    ),
    "more steps than were made": (
        lambda g: replace(g, "steps", 99),
        "must be `steps` <= `last` <= `now`",
    ),
    "a count leaves no margin": (
        lambda g: replace(g, "epochs", 2**31 - 1),
        "at most the|<= 1073741824",
    ),
    "more weights replaced than there are": (
        lambda g: replace(g, "replaced", 2**31 - 1),
        "at most the 4 averaged weights",
    ),
    "an unknown entry": (
        lambda g: g.__setitem__("raw_4", numpy.zeros(3)),
        r"unknown entries \['raw_4'\]",
    ),
    "a group of another program": (
        replace_all,
        "must have the count `version`",
    ),
}


@pytest.mark.parametrize(
    ("name", "reader", "message"),
    [
        ("default", LAWA, "no 'sample_0_0' for '.*kernel'"),
        ("default", BEMA, "no 'initial_0' for '.*kernel'"),
        ("lawa", SWA, r"unknown entries \['sample_0_0', "),
        ("lawa", BEMA, "no 'initial_0' for '.*kernel'"),
        ("lawa", functools.partial(LAWA, 1), "unknown entries .*sample_1_0"),
        ("swag", LAWA, r"no 'sample_0_0' for"),
        ("fge", SWAG, "no 'squares_0' for"),
        ("default", functools.partial(EMA, include="kernel"), "the model"),
    ],
    ids=[
        "EMA-LAWA",
        "EMA-BEMA",
        "LAWA-SWA",
        "LAWA-BEMA",
        "a shorter window",
        "SWAG-LAWA",
        "FGE-SWAG",
        "another choice of weights",
    ],
)
def test_the_average_of_another_method_is_refused(name, reader, message, saved):
    model = fresh(models.dense, reader(name=name))
    before = model.get_weights()
    for file in ("a", name):
        with pytest.raises(ValueError, match=message):
            model.load_weights(saved.directory / f"{file}.weights.h5")
        assert equal(model.get_weights(), before)


@pytest.fixture(scope="module")
def swapped_in_and_file(saved):
    """A model with an average swapped in, and a file of another such model."""
    model, ema = fresh(models.dense, optimizer="adam"), make("default")
    random_walk(model, ema)
    ema.apply()
    return model, ema, saved.directory / "default.weights.h5"


@pytest.mark.parametrize("fault", EDITS)
def test_a_damaged_average_is_refused_and_nothing_changes(
    fault, swapped_in_and_file, tmp_path
):
    model, ema, source = swapped_in_and_file
    edit, message = EDITS[fault]
    path = edited(shutil.copy(source, tmp_path), edit)
    shown, raw = model.get_weights(), probe.raw_weights(ema)
    optimizer, kept = values(model.optimizer.variables), state(ema)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    assert equal(model.get_weights(), shown)
    assert equal(values(model.optimizer.variables), optimizer)
    assert equal(state(ema), kept)
    assert equal(probe.raw_weights(ema), raw)


def test_the_undamaged_average_can_be_loaded(swapped_in_and_file):
    _, _, source = swapped_in_and_file
    again = make("default")
    fresh(models.dense, again, optimizer="adam").load_weights(source)
    assert probe.counts(again).now == 12


@pytest.mark.parametrize(
    ("load", "outcome"),
    [
        (
            lambda model, path: model.load_weights(path, skip_mismatch=True),
            lambda: pytest.warns(UserWarning, match="version=4"),
        ),
        (
            keras.saving.load_weights,
            lambda: pytest.raises(ValueError, match="version=4"),
        ),
    ],
    ids=["skip_mismatch", "keras.saving"],
)
def test_a_damaged_average_changes_nothing_with_each_way_of_loading(
    load, outcome, swapped_in_and_file, tmp_path
):
    """Nor do the valid averages before and after it in the file."""
    _, _, source = swapped_in_and_file
    path = shutil.copy(source, tmp_path)
    with h5py.File(path, "r+") as file:
        file.copy("~wavg_default", "~wavg_a")
        file.copy("~wavg_default", "~wavg_z")
    edited(path, EDITS["a newer format"][0])
    model = fresh(models.dense, optimizer="adam")
    averages = [EMA(0.9, name=name) for name in ("a", "default", "z")]
    random_walk(model, *averages)
    averages[1].apply()
    shown = model.get_weights()
    with outcome():
        load(model, path)
    assert equal(model.get_weights(), shown)
    after = full_state(model, *averages)
    again = [EMA(0.9, name=average.name) for average in averages]
    unchanged = fresh(models.dense, optimizer="adam")
    random_walk(unchanged, *again)
    assert differing(after, full_state(unchanged, *again)) == []


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_changes_nothing(kept, swapped_in_and_file, tmp_path):
    model, ema, source = swapped_in_and_file
    content = source.read_bytes()
    path = tmp_path / "a.weights.h5"
    path.write_bytes(content[: int(kept * len(content))])
    shown, averages = model.get_weights(), ema.get_weights()
    with pytest.raises(OSError, match=r"(?i)unable to .*open file"):
        model.load_weights(path)
    assert equal(model.get_weights(), shown)
    assert equal(ema.get_weights(), averages)


# Files of the average only


def test_save_weights_writes_a_plain_file_of_the_average(tmp_path):
    model, bema = fresh(models.batch_norm), BEMA(2)
    random_walk(model, bema)
    raw = model.get_weights()
    bema.save_weights(tmp_path / "a.weights.h5")
    assert equal(model.get_weights(), raw)
    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert set(file) == {"layers", "vars"}
    plain = fresh(models.batch_norm)
    plain.load_weights(tmp_path / "a.weights.h5")
    assert equal(plain.get_weights(), bema.get_weights())
    assert [p.name for p in tmp_path.iterdir()] == ["a.weights.h5"]


def test_save_weights_within_an_epoch_does_not_change_training(tmp_path):
    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ema.save_weights(tmp_path / "a.weights.h5")

    runs = []
    for callbacks in ([], [Save()]):
        model, ema = NESTED(), EMA(0.9)
        fit(model, ema, *callbacks, epochs=1)
        runs.append(full_state(model, ema))
    assert differing(*runs) == []


def test_save_weights_refuses_a_missing_average_or_a_wrong_path(tmp_path):
    model, lawa = compiled(models.dense()), LAWA()
    with pytest.raises(ValueError, match="needs a model"):
        lawa.save_weights(tmp_path / "a.weights.h5")
    lawa.set_model(model)
    with pytest.raises(ValueError, match="no average before the first update"):
        lawa.save_weights(tmp_path / "a.weights.h5")
    random_walk(model, lawa)
    with pytest.raises(ValueError, match=r"must end in `\.weights\.h5`"):
        lawa.save_weights(tmp_path / "a.keras")
    with pytest.raises(FileNotFoundError):
        lawa.save_weights(tmp_path / "missing" / "a.weights.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", 3, "~x", ".."])
def test_a_name_that_is_invalid_in_a_file_is_refused(name):
    with pytest.raises(ValueError, match="`name` must be a string of letters"):
        EMA(name=name)


@pytest.mark.parametrize("device", ["gpu", "cuda:0", 0, True])
def test_a_device_other_than_the_host_is_refused(device):
    with pytest.raises(ValueError, match="`device` must be `None`"):
        EMA(device=device)


# Orbax

IN_ORBAX = ["textbook", "lawa_by_steps", "swag", "fge", "bema"]


@models.seeded
def functional():
    """Functional: `load_model` loads no weights of a Sequential model."""
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(4, activation="tanh")
    hidden = keras.layers.BatchNormalization()(layer(layer(inputs)))
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    """A model with averages, and its Orbax checkpoint."""
    pytest.importorskip("orbax.checkpoint", reason="needs Orbax")
    keras.config.set_dtype_policy("float32")
    path = tmp_path_factory.mktemp("orbax") / "orbax"
    checkpoint = keras.callbacks.OrbaxCheckpoint(path)
    model = compiled(functional())
    averages = make_several(IN_ORBAX, swapped="textbook")
    fit(model, checkpoint, *averages)
    checkpoint.wait_until_finished()
    return model, averages, path


def test_a_model_without_an_average_loads_the_orbax_checkpoint(orbax):
    model, averages, path = orbax
    averages[0].apply()
    # Orbax matches names, so use those of a new process.
    keras.utils.clear_session()
    plain = fresh(functional)
    plain.load_weights(path)
    assert equal(plain.get_weights(), model.get_weights())
    loaded = keras.models.load_model(path)
    assert equal(loaded.get_weights(), model.get_weights())


def test_training_continues_exactly_from_an_orbax_checkpoint(orbax):
    model, averages, path = orbax
    averages[0].apply()
    keras.utils.clear_session()
    again = make_several(IN_ORBAX, swapped="textbook")
    other = fresh(functional, *again)
    other.load_weights(path)
    assert equal(other.get_weights(), model.get_weights())
    expected = full_state(model, *averages)
    assert differing(full_state(other, *again), expected) == []
    fit(model, *averages)
    fit(other, *again)
    expected = full_state(model, *averages)
    assert differing(full_state(other, *again), expected) == []


# `resume`


@pytest.mark.parametrize("file", FILES)
def test_resume_continues_training_from_each_kind_of_file(file, tmp_path):
    def training(epochs, first=0, path=None):
        model = fresh(models.dense, optimizer="adam")
        averages = [EMA(0.9), LAWA(2, swap=False)]
        if path:
            resume(model, path, averages)
        fit(model, *averages, initial_epoch=first, epochs=epochs)
        return model, averages

    model, _ = training(1)
    path = save(model, tmp_path / file)
    received, averages = training(2, 1, path)
    expected, others = training(2)
    assert (
        differing(
            full_state(received, *averages), full_state(expected, *others)
        )
        == []
    )


def test_resume_refuses_a_model_that_is_not_built_and_compiled(tmp_path):
    for model in (models.dense(), compiled(models.lazy())):
        with pytest.raises(
            ValueError, match="needs a built and compiled model"
        ):
            resume(model, tmp_path / "a.weights.h5", [EMA(0.9)])
