"""The average travels in the files of Keras, and comes back exactly."""

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
    make,
    make_several,
    save_and_load_at_any_time,
    snapshot,
    state,
    values,
    walk,
    weights_of,
)

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, resume

X, Y = data(6)
DENSE_WITH_ADAM = reused.Reused(models.dense, "adam")
NESTED = reused.Reused(models.nested)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


# An average in the model is kept in a file by the model's own weights.
IN_MODEL = [
    *("default", "every_kernel", "on_the_host", "power_ema"),
    *("lawa", "swag", "fge", "bema"),
]


class Saved(NamedTuple):
    """What a training left.

    Args:
        folder: With files of `FILES`, and with one for each of `IN_MODEL`,
            which was in the model when it was saved.
        shown: The weights in the model in `FILES`.
        before: Snapshot of what is in all files.
        after: Snapshot after the training had gone on.
    """

    folder: Path
    shown: list
    before: dict
    after: dict


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """All averages along one training, with an optimizer that has a state."""
    keras.config.set_dtype_policy("float32")
    folder = tmp_path_factory.mktemp("saved")
    model = fresh(models.dense, optimizer="adam")
    averages = make_several(AVERAGES, swapped="textbook")
    fit(model, *averages)
    shown = model.get_weights()
    for file in FILES:
        save(model, folder / file)
    before = snapshot(model, *averages)
    for average in averages:
        if average.name in IN_MODEL:
            with average.applied():
                save(model, folder / f"{average.name}.weights.h5")
    fit(model, *averages)
    return Saved(folder, shown, before, snapshot(model, *averages))


@pytest.mark.filterwarnings("ignore:.*made no average")
def test_a_loaded_model_goes_on_as_the_saved_one(saved):
    averages = make_several(AVERAGES, swapped="textbook")
    model = fresh(models.dense, *averages, optimizer="adam")
    for file in FILES:
        # What came after the file before is forgotten.
        model.load_weights(saved.folder / file)
        assert equal(model.get_weights(), saved.shown)
        assert differing(snapshot(model, *averages), saved.before) == []
        fit(model, *averages)
        assert differing(snapshot(model, *averages), saved.after) == []
    without = {a.name for a in averages if not probe.counts(a).averaged}
    assert without == WITHOUT_AN_UPDATE
    # It is no accident that they are the same.
    assert set(differing(saved.before, saved.after)) == saved.before.keys()


@pytest.mark.parametrize("name", IN_MODEL)
def test_an_average_comes_back_in_the_model(name, saved):
    average, model = make(name), DENSE_WITH_ADAM()
    average.set_model(model)
    model.load_weights(saved.folder / f"{name}.weights.h5")
    assert probe.is_in_model(average)
    assert equal(model.get_weights(), average.get_weights())
    expected = {k: saved.before[k] for k in ("weights", "optimizer", name)}
    assert differing(snapshot(model, average), expected) == []


@pytest.mark.parametrize(
    "step", [{"run_eagerly": True}, {"jit_compile": True}], ids=str
)
def test_a_loaded_model_goes_on_however_its_step_is_compiled(step, tmp_path):
    if keras.config.backend() == "torch" and "jit_compile" in step:
        pytest.skip("torch.compile wants a C++ compiler")
    model, ema = compiled(models.dense(), **step), EMA(0.9)
    fit(model, ema, epochs=1)
    model.save_weights(tmp_path / "a.weights.h5")
    fit(model, ema, epochs=1)
    expected = snapshot(model, ema)
    # For itself, what went on is another model.
    model.load_weights(tmp_path / "a.weights.h5")
    fit(model, ema, epochs=1)
    assert differing(snapshot(model, ema), expected) == []


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
def test_every_kind_of_model_and_file_carries_the_average(kind, tmp_path):
    # On the device it matters only that weights may be too big to be packed.
    new = EMA if kind == "batch_norm" else functools.partial(BEMA, 2)
    average = new()
    model = built(kind, average)
    walk(model, average)
    average.apply()
    shown = model.get_weights()
    paths = [save(model, tmp_path / file) for file in FILES]
    expected = snapshot(model, average)
    for path in paths:
        again = new()
        other = built(kind, again)
        other.load_weights(path)
        assert equal(other.get_weights(), shown)
        assert differing(snapshot(other, again), expected) == []


@pytest.mark.parametrize("policy", ["float64", "bfloat16", "mixed_bfloat16"])
def test_each_dtype_comes_back_bit_for_bit(policy, tmp_path):
    if policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where it is enabled")
    keras.config.set_dtype_policy(policy)
    averages = EMA(0.9), BEMA(3)
    model = fresh(models.dense)
    walk(model, *averages)
    for held in (None, *averages):
        if held is not None:
            held.apply()
        shown = model.get_weights()
        path = save(model, tmp_path / "a.weights.h5")
        expected = snapshot(model, *averages)
        again = EMA(0.9), BEMA(3)
        other = fresh(models.dense, *again)
        other.load_weights(path)
        in_model = [
            average.name for average in again if probe.is_in_model(average)
        ]
        assert in_model == ([] if held is None else [held.name])
        assert equal(other.get_weights(), shown)
        assert differing(snapshot(other, *again), expected) == []


def wavg_bytes(path, name):
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
def test_a_file_grows_by_so_many_copies_of_the_weights(name, copies, saved):
    """Whichever of the average and the raw weights is in the model."""
    size = copies * sum(w.nbytes for w in saved.shown)
    for file in ("a", name):
        assert wavg_bytes(saved.folder / f"{file}.weights.h5", name) == size


def test_a_model_without_an_average_loads_the_same_file(saved):
    plain = fresh(models.dense, optimizer="adam")
    for file in FILES:
        walk(plain)
        plain.load_weights(saved.folder / file)
        assert equal(plain.get_weights(), saved.shown)
    loaded = keras.models.load_model(saved.folder / "a.keras")
    assert equal(loaded.get_weights(), saved.shown)


def test_the_average_is_no_layer_and_no_variable_of_the_model():
    model = NESTED()
    names = {v.path for v in model.variables}
    layers = list(model.layers)
    fit(model, LAWA())
    assert model.layers == layers
    assert {v.path for v in model.variables} == names
    assert not any("wavg" in v.path for v in model.variables)


class SaveEachBatch(keras.callbacks.Callback):
    """Saves as `BackupAndRestore(save_freq=1)`, each time to a new file."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.paths = []

    def save(self):
        self.paths.append(self.folder / f"{len(self.paths)}.weights.h5")
        self.model.save_weights(self.paths[-1])

    def on_train_batch_end(self, batch, logs=None):
        self.save()

    def on_epoch_end(self, epoch, logs=None):
        self.save()


def averages_in_a_loop(swapped):
    """Due at the ends of epochs of two batches, and between.

    The one that is written back into the weights is the last in the alphabet,
    too, which is the order in a file.
    """
    return [
        BEMA(2, swap=False),
        FGE(2),
        LAWA(2, swap=swapped == "lawa", name="lawa"),
        SWAG(rank=2, every_steps=3, swap=False),
        EMA(
            0.9,
            bias_correction=False,
            overwrite_every=1,
            swap=swapped == "written_back",
            name="written_back",
        ),
    ]


class Loop(NamedTuple):
    """Trainings that were saved at each batch, or never.

    Args:
        ends: Snapshots by the place of the callback that saves.
        files: What each file gives back, by the same.
    """

    ends: dict
    files: dict


@pytest.fixture(scope="module", params=["lawa", "written_back"])
def loop(request, tmp_path_factory):
    """Two epochs, or one of so many batches as nobody knows."""
    swapped = request.param
    ends, files = {}, {}
    for place in ("first", "last", "nowhere"):
        saver = SaveEachBatch(tmp_path_factory.mktemp(place))
        averages, model = averages_in_a_loop(swapped), NESTED()
        callbacks = {
            "first": [saver, *averages],
            "last": [*averages, saver],
            "nowhere": averages,
        }[place]
        if swapped == "lawa":
            model.fit(*data(2), BATCH, epochs=2, verbose=0, callbacks=callbacks)
        else:
            model.fit(models.generator(2), verbose=0, callbacks=callbacks)
        ends[place] = snapshot(model, *averages)
        files[place] = [*contents(saver.paths, swapped)]
    return Loop(ends, files)


def contents(paths, swapped):
    averages = averages_in_a_loop(swapped)
    model = fresh(models.nested, *averages)
    for path in paths:
        model.load_weights(path)
        yield snapshot(model, *averages)


def test_the_order_of_the_callbacks_does_not_matter_to_a_file(loop):
    first, last = loop.files["first"], loop.files["last"]
    for number, (one, other) in enumerate(zip(first, last, strict=True)):
        assert differing(one, other) == [], number
    assert len(first) in {3, 6}


def test_saving_at_each_batch_changes_nothing_in_training(loop):
    for place in ("first", "last"):
        assert differing(loop.ends[place], loop.ends["nowhere"]) == [], place


def test_a_file_saved_before_a_batch_is_not_a_step_ahead(tmp_path):
    class SaveBefore(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.save_weights(tmp_path / "a.weights.h5")

    model, samples = reused.dense(), models.Samples()
    lawa = LAWA(6, every_steps=1)
    fit(model, samples, lawa, SaveBefore(), epochs=1)
    expected = reference.mean(samples.weights)
    assert reference.relative_error(lawa.get_weights(), expected) < 1e-6


def test_averages_on_top_of_each_other_come_back_in_their_order(tmp_path):
    saved, loaded = (
        [LAWA(1, name="b"), LAWA(2, name="a"), BEMA(1, name="c")]
        for _ in range(2)
    )
    model, other = fresh(models.dense), fresh(models.dense, *loaded)
    walk(model, *saved)
    for average in saved:
        average.apply()
    other.load_weights(save(model, tmp_path / "a.weights.h5"))
    for pair in zip(saved[::-1], loaded[::-1], strict=True):
        assert equal(other.get_weights(), model.get_weights())
        for average in pair:
            average.restore()
    assert equal(other.get_weights(), model.get_weights())


def test_two_averages_of_one_name_are_refused():
    riding = EMA(0.5, swap=False), EMA(0.9, swap=False)
    with pytest.raises(ValueError, match=r"name='ema'\. Pass `name=`"):
        fit(compiled(models.dense()), *riding)


def test_a_run_that_was_saved_with_swap_goes_on_without_it(tmp_path):
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


def test_two_averages_of_one_name_are_refused_in_a_loop():
    model, first, second = models.dense(), LAWA(1), LAWA(2)
    first.set_model(model)
    second.set_model(model)
    second.update()
    with pytest.raises(ValueError, match=r"name='lawa'\. Pass `name=`"):
        first.update()


def test_a_new_callback_takes_the_seat_of_one_with_its_name(tmp_path):
    model, bema, again = fresh(models.dense), BEMA(2), BEMA(2)
    walk(model, BEMA(1))
    walk(model, bema)
    path = save(model, tmp_path / "a.weights.h5")
    size = 3 * sum(w.nbytes for w in model.get_weights())
    assert wavg_bytes(path, "bema") == size
    fresh(models.dense, again).load_weights(path)
    assert equal(state(again), state(bema))


def test_loading_the_best_file_after_fit_puts_its_average_in(tmp_path):
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


def test_a_loop_of_ones_own_saves_and_loads(tmp_path):
    model, bema = models.dense(), BEMA(2)
    walk(model, bema, steps=5)
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


def test_a_file_without_an_average_warns_and_begins_anew(tmp_path):
    plain = fresh(models.dense)
    walk(plain)
    path = save(plain, tmp_path / "a.weights.h5")
    model = reused.dense()
    averages = make_several(["textbook", "lawa"], swapped="textbook")
    fit(model, *averages)
    with pytest.warns(UserWarning, match="no average named") as caught:
        model.load_weights(path)
    warned = [str(warning.message) for warning in caught]
    assert equal(model.get_weights(), plain.get_weights())
    for average in averages:
        assert any(f"no average named '{average.name}'" in w for w in warned)
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
def test_an_average_of_adapters_on_quantized_kernels_begins_anew(tmp_path):
    """A file has their sum with the kernel, so nothing else can be told."""
    path = tmp_path / "a.weights.h5"
    model, ema = quantized_with_adapters(), EMA(0.9)
    walk(model, ema)
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


def test_a_legacy_file_warns_too(tmp_path):
    if keras.config.backend() == "torch":
        pytest.skip("legacy files need not be tried on each backend")
    path = tmp_path / "a.h5"
    compiled(models.dense()).save(path)
    model, lawa = fresh(models.dense), LAWA()
    walk(model, lawa)
    with pytest.warns(UserWarning, match="no average named 'lawa'"):
        model.load_weights(path)
    assert weights_of(lawa) == []


def test_hooks_called_by_hand_without_the_begin_of_a_batch_count():
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


def test_weights_loaded_in_mid_epoch_are_gone_on_from(tmp_path):
    """The batch that was overwritten by them is no step of the average."""

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


def test_a_layer_added_after_training_does_not_spoil_the_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    walk(compiled(model), LAWA())
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
    # On the device each is compiled: but for one, they are in `tests/slow`.
    name=st.sampled_from(
        ["lawa_every_other_epoch", "swag", "fge", "bema", "every_kernel"]
    ),
)
def test_saving_and_loading_at_any_time_changes_nothing(
    plan, name, tmp_path_factory
):
    path = tmp_path_factory.mktemp("plan") / "a.weights.h5"
    save_and_load_at_any_time(plan, name, path)


# Bad input


def edited(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file["~wavg_default/vars"])
    return path


def replace(group, key, value):
    del group[key]
    group[key] = value


def spoil(dataset):
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
    "a count is no integer": (
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
    "in the model before it began": (
        lambda g: replace(g, "begun", 0),
        "Received: raw weights, with begun=0",
    ),
    "a count is a list": (
        lambda g: replace(g, "pending", [1, 2]),
        "`pending` of a saved average must be an integer",
    ),
    "another shape": (
        lambda g: replace(g, "raw_1", numpy.zeros(7, "float32")),
        r"'raw_1' is to be that of '.*bias'.*\n?.*shape \(7,\)",
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
            or spoil(g.parent.parent["layers/dense/vars/1"])
        ),
        "NaN or infinity in 'average_1'",
    ),
    "counts are in no order": (
        lambda g: replace(g, "last", 99),
        "must be `steps` <= `last` <= `now`",
    ),
    "more steps than were made": (
        lambda g: replace(g, "steps", 99),
        "must be `steps` <= `last` <= `now`",
    ),
    "no room to go on": (
        lambda g: replace(g, "epochs", 2**31 - 1),
        "at most the|<= 1073741824",
    ),
    "more weights replaced than there are": (
        lambda g: replace(g, "replaced", 2**31 - 1),
        "at most the 4 averaged weights",
    ),
    "too much": (
        lambda g: g.__setitem__("raw_4", numpy.zeros(3)),
        r"unknown entries \['raw_4'\]",
    ),
    "a stranger's group": (replace_all, "must have the count `version`"),
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
        ("default", functools.partial(EMA, include="kernel"), "this model's"),
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
            model.load_weights(saved.folder / f"{file}.weights.h5")
        assert equal(model.get_weights(), before)


@pytest.fixture(scope="module")
def walked(saved):
    """A model that holds an average, and a file of another such model."""
    model, ema = fresh(models.dense, optimizer="adam"), make("default")
    walk(model, ema)
    ema.apply()
    return model, ema, saved.folder / "default.weights.h5"


@pytest.mark.parametrize("fault", EDITS)
def test_a_damaged_average_is_refused_and_nothing_changes(
    fault, walked, tmp_path
):
    model, ema, donor = walked
    edit, message = EDITS[fault]
    path = edited(shutil.copy(donor, tmp_path), edit)
    shown, raw = model.get_weights(), probe.raw_weights(ema)
    optimizer, kept = values(model.optimizer.variables), state(ema)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    assert equal(model.get_weights(), shown)
    assert equal(values(model.optimizer.variables), optimizer)
    assert equal(state(ema), kept)
    assert equal(probe.raw_weights(ema), raw)


def test_what_refuses_a_damaged_file_takes_the_whole_one(walked):
    _, _, donor = walked
    again = make("default")
    fresh(models.dense, again, optimizer="adam").load_weights(donor)
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
def test_a_bad_average_changes_nothing_however_it_is_loaded(
    load, outcome, walked, tmp_path
):
    """Neither do the good ones, before it and behind it in the file."""
    _, _, donor = walked
    path = shutil.copy(donor, tmp_path)
    with h5py.File(path, "r+") as file:
        file.copy("~wavg_default", "~wavg_a")
        file.copy("~wavg_default", "~wavg_z")
    edited(path, EDITS["a newer format"][0])
    model = fresh(models.dense, optimizer="adam")
    averages = [EMA(0.9, name=name) for name in ("a", "default", "z")]
    walk(model, *averages)
    averages[1].apply()
    shown = model.get_weights()
    with outcome():
        load(model, path)
    assert equal(model.get_weights(), shown)
    after = snapshot(model, *averages)
    again = [EMA(0.9, name=average.name) for average in averages]
    twin = fresh(models.dense, optimizer="adam")
    walk(twin, *again)
    assert differing(after, snapshot(twin, *again)) == []


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_changes_nothing(kept, walked, tmp_path):
    model, ema, donor = walked
    content = donor.read_bytes()
    path = tmp_path / "a.weights.h5"
    path.write_bytes(content[: int(kept * len(content))])
    shown, averages = model.get_weights(), ema.get_weights()
    with pytest.raises(OSError, match=r"(?i)unable to .*open file"):
        model.load_weights(path)
    assert equal(model.get_weights(), shown)
    assert equal(ema.get_weights(), averages)


# A file of the average alone


def test_save_weights_writes_a_plain_file_of_the_average(tmp_path):
    model, bema = fresh(models.batch_norm), BEMA(2)
    walk(model, bema)
    raw = model.get_weights()
    bema.save_weights(tmp_path / "a.weights.h5")
    assert equal(model.get_weights(), raw)
    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert set(file) == {"layers", "vars"}
    plain = fresh(models.batch_norm)
    plain.load_weights(tmp_path / "a.weights.h5")
    assert equal(plain.get_weights(), bema.get_weights())
    assert [p.name for p in tmp_path.iterdir()] == ["a.weights.h5"]


def test_save_weights_in_mid_epoch_does_not_disturb_training(tmp_path):
    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ema.save_weights(tmp_path / "a.weights.h5")

    runs = []
    for callbacks in ([], [Save()]):
        model, ema = NESTED(), EMA(0.9)
        fit(model, ema, *callbacks, epochs=1)
        runs.append(snapshot(model, ema))
    assert differing(*runs) == []


def test_save_weights_refuses_what_it_cannot_do(tmp_path):
    model, lawa = compiled(models.dense()), LAWA()
    with pytest.raises(ValueError, match="needs a model"):
        lawa.save_weights(tmp_path / "a.weights.h5")
    lawa.set_model(model)
    with pytest.raises(ValueError, match="no average before the first update"):
        lawa.save_weights(tmp_path / "a.weights.h5")
    walk(model, lawa)
    with pytest.raises(ValueError, match=r"must end in `\.weights\.h5`"):
        lawa.save_weights(tmp_path / "a.keras")
    with pytest.raises(FileNotFoundError):
        lawa.save_weights(tmp_path / "nowhere" / "a.weights.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", 3, "~x", ".."])
def test_a_name_that_no_file_can_hold_is_refused(name):
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
    """Not a Sequential one, of which Keras' `load_model` reads no weights."""
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(4, activation="tanh")
    hidden = keras.layers.BatchNormalization()(layer(layer(inputs)))
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    """A model with averages, and its checkpoint."""
    pytest.importorskip("orbax.checkpoint", reason="Orbax is for JAX")
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
    keras.utils.clear_session()  # Orbax goes by names, those of a new process.
    plain = fresh(functional)
    plain.load_weights(path)
    assert equal(plain.get_weights(), model.get_weights())
    loaded = keras.models.load_model(path)
    assert equal(loaded.get_weights(), model.get_weights())


def test_an_orbax_checkpoint_goes_on_as_the_saved_model(orbax):
    model, averages, path = orbax
    averages[0].apply()
    keras.utils.clear_session()
    again = make_several(IN_ORBAX, swapped="textbook")
    other = fresh(functional, *again)
    other.load_weights(path)
    assert equal(other.get_weights(), model.get_weights())
    expected = snapshot(model, *averages)
    assert differing(snapshot(other, *again), expected) == []
    fit(model, *averages)
    fit(other, *again)
    expected = snapshot(model, *averages)
    assert differing(snapshot(other, *again), expected) == []


# A new process


@pytest.mark.parametrize("file", FILES)
def test_one_call_goes_on_from_any_file(file, tmp_path):
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
        differing(snapshot(received, *averages), snapshot(expected, *others))
        == []
    )


def test_a_model_that_is_not_ready_is_not_gone_on_from(tmp_path):
    for model in (models.dense(), compiled(models.lazy())):
        with pytest.raises(ValueError, match="that is built and compiled"):
            resume(model, tmp_path / "a.weights.h5", [EMA(0.9)])
