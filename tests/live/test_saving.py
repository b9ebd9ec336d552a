"""The average travels in the files of Keras, and comes back exactly."""

import copy
import functools
import itertools
import pickle
import shutil

import h5py
import hypothesis
import hypothesis.strategies as st
import keras
import models
import numpy
import probe
import pytest
import reference
from models import (
    BATCH,
    FILES,
    compiled,
    data,
    equal,
    fresh,
    loses_parts_of_shards,
    save,
)

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, Lookahead, PowerEMA

X, Y = data(6)
OPTIONS = {
    "default": {},
    "textbook": {"bias_correction": False},
    "warmup": {"warmup": True},
    "textbook warmup": {"warmup": True, "bias_correction": False},
    "every": {"every": 5},
    "textbook every": {"every": 5, "bias_correction": False},
    "start": {"start": 7},
    "textbook start": {"start": 7, "bias_correction": False},
    "before the first update": {"start": 100},
    "begun, before the first update": {"every": 100, "bias_correction": False},
    "include": {"include": "kernel"},
    "riding": {"swap": False},
    "on the host": {"device": "cpu", "every": 2},
}
AVERAGES = {
    **{
        name: functools.partial(EMA, 0.9, **options)
        for name, options in OPTIONS.items()
    },
    "written back": functools.partial(EMA, 0.9, overwrite_every=5),
    "Lookahead": functools.partial(Lookahead, 5),
    "SWA": SWA,
    "SWA late": functools.partial(SWA, start_epoch=3),
    "SWA every other epoch": functools.partial(SWA, every=2, start_epoch=1),
    "SWA by steps": functools.partial(SWA, every_steps=5, start_epoch=1),
    "LAWA": functools.partial(LAWA, 2),
    "LAWA riding": functools.partial(LAWA, 2, every_steps=3, swap=False),
    "SWAG": functools.partial(SWAG, rank=2),
    "SWAG by steps": functools.partial(SWAG, rank=3, every_steps=2),
    "FGE": functools.partial(FGE, 4),
    "BEMA": functools.partial(BEMA, 5),
    "BEMA late": functools.partial(BEMA, 2, start=9, swap=False),
    "PowerEMA": functools.partial(PowerEMA, (0.05, 0.2), every=3),
}


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def average(ema):
    try:
        return ema.get_weights()
    except ValueError:
        return None


def optimizer_weights(optimizer):
    return [keras.ops.convert_to_numpy(v.value) for v in optimizer.variables]


def snapshot(model, ema):
    """Raw weights, optimizer, average and counts, the average taken out."""
    ema.restore()
    return [
        *model.get_weights(),
        *optimizer_weights(model.optimizer),
        *(average(ema) or []),
        *itertools.chain(*probe.kept(ema).values()),
        numpy.array(probe.counts(ema)),
    ]


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.filterwarnings("ignore:.*made no average")
def test_a_loaded_model_goes_on_as_the_saved_one(name, tmp_path):
    index = list(AVERAGES).index(name)
    model, ema = compiled(models.dense()), AVERAGES[name]()
    fit(model, ema)
    path = save(model, tmp_path / FILES[index % 3])
    shown = model.get_weights()
    again = AVERAGES[name]()
    other = fresh(models.dense, again)
    other.load_weights(path)
    assert equal(other.get_weights(), shown)
    assert equal(snapshot(other, again), snapshot(model, ema))
    fit(model, ema)
    fit(other, again)
    assert equal(other.get_weights(), model.get_weights())
    assert equal(snapshot(other, again), snapshot(model, ema))
    # What came after a file is forgotten when it is loaded again.
    model.load_weights(path)
    fit(model, ema)
    assert equal(snapshot(model, ema), snapshot(other, again))
    if "before the first update" not in name:
        assert probe.counts(again).averaged


@pytest.mark.parametrize(
    "step", [{"run_eagerly": True}, {"jit_compile": True}], ids=str
)
def test_a_loaded_model_goes_on_however_its_step_is_compiled(step, tmp_path):
    if keras.config.backend() == "torch" and "jit_compile" in step:
        pytest.skip("torch.compile wants a C++ compiler")
    model, ema = compiled(models.nested(), **step), EMA(0.9)
    fit(model, ema)
    model.save_weights(tmp_path / "a.weights.h5")
    other, again = compiled(models.nested(), **step), EMA(0.9)
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(tmp_path / "a.weights.h5")
    fit(model, ema)
    fit(other, again)
    assert equal(snapshot(other, again), snapshot(model, ema))


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("batch_norm", "a.weights.json"),
        ("nested", "a.keras"),
        ("shared", "a.weights.json"),
        ("subclassed", "a.keras"),
        ("subclassed", "a.weights.h5"),
    ],
)
@loses_parts_of_shards
def test_every_kind_of_model_and_file_carries_the_average(kind, file, tmp_path):
    build = models.KINDS[kind]
    model, ema = compiled(build()), EMA(0.9)
    fit(model, ema)
    path = tmp_path / file
    save(model, path)
    again = EMA(0.9)
    other = compiled(build())
    other(X[:1])
    other.optimizer.build(other.trainable_variables)
    again.set_model(other)
    other.load_weights(path)
    assert equal(snapshot(other, again), snapshot(model, ema))


@pytest.mark.parametrize("policy", ["float64", "bfloat16", "mixed_bfloat16"])
def test_each_dtype_comes_back_bit_for_bit(policy, tmp_path):
    if policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where it is enabled")
    keras.config.set_dtype_policy(policy)
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    path = save(model, tmp_path / "a.weights.h5")
    again = EMA(0.9)
    other = fresh(models.dense, again)
    other.load_weights(path)
    assert probe.is_held(again)
    assert equal(snapshot(other, again), snapshot(model, ema))


def wavg_bytes(path):
    with h5py.File(path) as file:
        stored = file["~wavg_ema/vars"]
        return sum(d.nbytes for d in stored.values() if d.shape)


@pytest.mark.parametrize("in_model", [True, False])
def test_a_file_grows_by_one_copy_of_the_weights(in_model, tmp_path):
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    if not in_model:
        ema.restore()
    path = save(model, tmp_path / "a.weights.h5")
    assert wavg_bytes(path) == sum(w.nbytes for w in model.get_weights())


@pytest.mark.parametrize("file", FILES)
def test_a_model_without_an_average_loads_the_same_file(file, tmp_path):
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    names = {v.path for v in model.variables}
    layers = list(model.layers)
    fit(model, ema)
    assert model.layers == layers
    assert {v.path for v in model.variables} >= names
    assert not any("wavg" in v.path for v in model.variables)
    path = save(model, tmp_path / file)
    plain = fresh(models.batch_norm)
    plain.load_weights(path)
    assert equal(plain.get_weights(), model.get_weights())
    if file.endswith(".keras"):
        loaded = keras.models.load_model(path)
        assert equal(loaded.get_weights(), model.get_weights())


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


def states(paths, name):
    """What each file gives back."""
    found = []
    for path in paths:
        ema = AVERAGES[name]()
        model = fresh(models.dense, ema)
        model.load_weights(path)
        found.append(snapshot(model, ema))
    return found


def generated():
    for index in range(0, len(X), BATCH):
        yield X[index : index + BATCH], Y[index : index + BATCH]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "options",
    [
        "every",
        "textbook",
        "written back",
        "SWA",
        "LAWA",
        "SWAG by steps",
        "FGE",
        "BEMA",
    ],
)
@pytest.mark.filterwarnings("ignore:.*made no average")
def test_the_order_of_the_callbacks_does_not_matter_to_a_file(
    options, known, tmp_path
):
    found = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        saver, ema = SaveEachBatch(folder), AVERAGES[options]()
        model = compiled(models.dense())
        callbacks = [saver, ema][::order]
        if known:
            fit(model, *callbacks, epochs=2)
        else:
            model.fit(generated(), epochs=1, callbacks=callbacks, verbose=0)
        assert probe.counts(ema).now == (12 if known else 6)
        found.append(states(saver.paths, options))
    for first, second in zip(*found, strict=True):
        assert equal(first, second)


def test_saving_at_each_batch_changes_nothing_in_training(tmp_path):
    weights, averages = [], []
    for callbacks in ([], [SaveEachBatch(tmp_path)]):
        model, ema = compiled(models.batch_norm()), EMA(0.9)
        fit(model, *callbacks, ema)
        weights.append(model.get_weights())
        averages.append(ema.get_weights())
    assert equal(*weights)
    assert equal(*averages)


def test_a_file_saved_before_a_batch_is_not_a_step_ahead(tmp_path):
    class SaveBefore(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.save_weights(tmp_path / "a.weights.h5")

    model, ema, samples = compiled(models.dense()), EMA(0.9), models.Samples()
    fit(model, samples, ema, SaveBefore(), epochs=1)
    received = reference.relative_error(
        ema.get_weights(), reference.ema(samples.weights, 0.9)
    )
    assert received < 1e-6


def test_several_averages_travel_side_by_side(tmp_path):
    def averages():
        return EMA(0.5), EMA(0.9, swap=False, name="slow")

    saved, loaded = averages(), averages()
    model = compiled(models.dense())
    fit(model, *saved)
    path = save(model, tmp_path / "a.weights.h5")
    other = fresh(models.dense, *loaded)
    other.load_weights(path)
    assert not equal(loaded[0].get_weights(), loaded[1].get_weights())
    for first, second in zip(saved, loaded, strict=True):
        assert equal(first.get_weights(), second.get_weights())
    loaded[0].restore()
    saved[0].restore()
    assert equal(other.get_weights(), model.get_weights())


def test_averages_on_top_of_each_other_come_back_in_their_order(tmp_path):
    def averages():
        return EMA(0.5, name="b"), EMA(0.9, swap=False, name="a")

    saved, loaded = averages(), averages()
    model = compiled(models.dense())
    fit(model, *saved)
    saved[1].apply()
    path = save(model, tmp_path / "a.weights.h5")
    other = fresh(models.dense, *loaded)
    other.load_weights(path)
    for pair in zip(saved[::-1], loaded[::-1], strict=True):
        assert equal(other.get_weights(), model.get_weights())
        for ema in pair:
            ema.restore()
    assert equal(other.get_weights(), model.get_weights())


def test_two_averages_of_one_name_are_refused():
    riders = EMA(0.5, swap=False), EMA(0.9, swap=False)
    with pytest.raises(ValueError, match=r"name='ema_riding'\. Pass `name=`"):
        fit(compiled(models.dense()), *riders)


def test_two_averages_of_one_name_are_refused_in_a_loop():
    model, first, second = models.dense(), EMA(0.5), EMA(0.9)
    first.set_model(model)
    second.set_model(model)
    second.update()
    with pytest.raises(ValueError, match=r"name='ema'\. Pass `name=`"):
        first.update()


def test_a_new_callback_takes_the_seat_of_one_with_its_name(tmp_path):
    model = compiled(models.dense())
    fit(model, EMA(0.5))
    ema = EMA(0.9)
    fit(model, ema)
    path = save(model, tmp_path / "a.weights.h5")
    assert wavg_bytes(path) == sum(w.nbytes for w in model.get_weights())
    again = EMA(0.9)
    other = fresh(models.dense, again)
    other.load_weights(path)
    assert equal(again.get_weights(), ema.get_weights())


def test_loading_the_best_file_after_fit_puts_its_average_in(tmp_path):
    model, ema = compiled(models.dense()), EMA(0.9)
    file = str(tmp_path / "{epoch}.weights.h5")
    keep = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    fit(model, ema, keep, epochs=3)
    model.load_weights(tmp_path / "2.weights.h5")
    shown = model.get_weights()
    assert equal(ema.get_weights(), shown)
    twin, other = compiled(models.dense()), EMA(0.9)
    fit(twin, other, epochs=2)
    assert equal(twin.get_weights(), shown)
    assert equal(snapshot(model, ema), snapshot(twin, other))


def test_a_loop_of_ones_own_saves_and_loads(tmp_path):
    model, ema = models.dense(), EMA(0.9)
    ema.set_model(model)
    rng = numpy.random.default_rng(0)
    for _ in range(4):
        values = [rng.normal(size=w.shape) for w in model.get_weights()]
        model.set_weights(values)
        ema.update()
    path = save(model, tmp_path / "a.weights.h5")
    other, again = models.dense(), EMA(0.9)
    again.set_model(other)
    other.load_weights(path)
    assert equal(again.get_weights(), ema.get_weights())
    for one, averaged in ((model, ema), (other, again)):
        one.set_weights(values)
        averaged.update()
    assert equal(again.get_weights(), ema.get_weights())


@pytest.mark.parametrize("options", ["default", "textbook", "warmup"])
def test_a_file_without_an_average_warns_and_begins_anew(options, tmp_path):
    plain = compiled(models.dense())
    fit(plain)
    path = save(plain, tmp_path / "a.weights.h5")
    model, ema = compiled(models.dense()), AVERAGES[options]()
    fit(model, ema)
    with pytest.warns(UserWarning, match="no average named 'ema'"):
        model.load_weights(path)
    assert equal(model.get_weights(), plain.get_weights())
    with pytest.raises(ValueError, match="no average before the first update"):
        ema.get_weights()
    samples = models.Samples()
    fit(model, samples, ema)
    assert equal(samples.initial, plain.get_weights())
    expected = reference.ema(
        samples.weights,
        0.9,
        warmup=options == "warmup",
        initial=samples.initial if options == "textbook" else None,
    )
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_a_legacy_file_warns_too(tmp_path):
    if keras.config.backend() == "torch":
        pytest.skip("legacy files need not be tried on each backend")
    path = tmp_path / "a.h5"
    compiled(models.dense()).save(path)
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    with pytest.warns(UserWarning, match="no average named 'ema'"):
        model.load_weights(path)
    assert average(ema) is None


def test_hooks_called_by_hand_without_the_begin_of_a_batch_count():
    model, ema = compiled(models.dense()), EMA(0.9)
    callbacks = keras.callbacks.CallbackList([ema], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    samples = []
    for batch in range(4):
        model.train_on_batch(X[:8], Y[:8])
        samples.append(model.get_weights())
        callbacks.on_train_batch_end(batch)
    expected = reference.ema(samples, 0.9)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


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
        fit(compiled(models.dense()), samples, *callbacks, epochs=1)
        kept = [samples.weights[i] for i in (0, 1, 4, 5)]
        expected = reference.ema(kept, 0.9)
        assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_a_layer_added_after_fit_does_not_spoil_the_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    fit(compiled(model), EMA(0.9))
    model.add(keras.layers.Dense(1))
    path = save(model, tmp_path / "a.weights.h5")
    again = EMA(0.9)
    again.set_model(model)
    model.load_weights(path)
    assert average(again) is None


def test_copies_exports_and_summaries_of_the_model_work(tmp_path):
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    model.summary(print_fn=lambda *_, **__: None)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301
        keras.models.clone_model(model),
    ):
        assert not any("wavg" in name for name in vars(other))
        other.set_weights(model.get_weights())
        fit(compiled(other), EMA(0.9))
    if keras.config.backend() == "tensorflow":
        model.export(tmp_path / "exported", verbose=False)
    assert average(ema) is not None


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    plan=st.lists(st.sampled_from(["step", "swap", "save"]), max_size=12),
    options=st.sampled_from(
        [
            "default",
            "textbook",
            "every",
            "warmup",
            "start",
            "riding",
            "SWA every other epoch",
            "LAWA",
            "SWAG",
            "Lookahead",
            "BEMA",
        ]
    ),
)
def test_saving_and_loading_at_any_time_changes_nothing(
    plan, options, tmp_path_factory
):
    path = tmp_path_factory.mktemp("plan") / "a.weights.h5"
    rng = numpy.random.default_rng(0)
    steady, moving = MODELS
    for model in MODELS:
        model.set_weights([w * 0 for w in model.get_weights()])
    one, other = (AVERAGES[options]() for _ in range(2))
    one.set_model(steady)
    other.set_model(moving)
    for action in plan:
        if action == "swap":
            for ema in (one, other):
                ema.restore() if probe.is_in_model(ema) else ema.apply()
        elif action == "step":
            one.restore()
            other.restore()
            weights = [rng.normal(size=w.shape) for w in steady.get_weights()]
            steady.set_weights(weights)
            moving.set_weights(weights)
            one.update()
            other.update()
        else:
            moving.save_weights(path)
            moving.set_weights([w + 1 for w in moving.get_weights()])
            other = AVERAGES[options]()
            other.set_model(moving)
            moving.load_weights(path)
        assert equal(moving.get_weights(), steady.get_weights())
        assert (average(one) is None) == (average(other) is None)
        assert equal(average(one) or [], average(other) or [])
    one.restore()
    other.restore()
    assert equal(moving.get_weights(), steady.get_weights())


MODELS = models.dense(), models.dense()


# Bad input


def edited(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file["~wavg_ema/vars"])
    return path


def replace(group, key, value):
    del group[key]
    group[key] = value


EDITS = {
    "a count is missing": (
        lambda g: g.__delitem__("steps"),
        "must have the count `steps`",
    ),
    "a newer format": (
        lambda g: replace(g, "version", 3),
        "Received: version=3",
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
        "Received: place=1, begun=0",
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
        "no 'raw_2' for '.*kernel'",
    ),
    "too much": (
        lambda g: g.__setitem__("raw_4", numpy.zeros(3)),
        r"unknown entries \['raw_4'\]",
    ),
    "a stranger's group": (
        lambda g: [g.__delitem__(k) for k in list(g)] and replace_all(g),
        "must have the count `version`",
    ),
}


@pytest.mark.parametrize(
    ("writer", "reader", "message"),
    [
        (EMA, LAWA, "no 'sample_0_0' for '.*kernel'"),
        (LAWA, SWA, r"unknown entries \['sample_0_0', "),
        (SWAG, LAWA, r"no 'sample_0_0' for"),
        (FGE, SWAG, "no 'squares_0' for"),
        (LAWA, functools.partial(LAWA, 1), "unknown entries .*sample_1_0"),
    ],
    ids=["EMA-LAWA", "LAWA-SWA", "SWAG-LAWA", "FGE-SWAG", "a shorter window"],
)
def test_the_average_of_another_method_is_refused(
    writer, reader, message, tmp_path
):
    writer = functools.partial(FGE, 4) if writer is FGE else writer
    model = compiled(models.dense())
    fit(model, writer(name="a"))
    model.save_weights(tmp_path / "a.weights.h5")
    other, average = compiled(models.dense()), reader(name="a")
    average.set_model(other)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        other.load_weights(tmp_path / "a.weights.h5")
    assert equal(other.get_weights(), before)


def replace_all(group):
    group["0"] = numpy.zeros(3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with an average, and a file of another such run."""
    donor = compiled(models.dense())
    fit(donor, EMA(0.9), epochs=1)
    path = save(donor, tmp_path_factory.mktemp("donor") / "a.weights.h5")
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    return model, ema, path


@pytest.mark.parametrize("fault", EDITS)
def test_a_damaged_average_is_refused_and_nothing_changes(
    fault, trained, tmp_path
):
    model, ema, donor = trained
    edit, message = EDITS[fault]
    path = edited(shutil.copy(donor, tmp_path), edit)
    shown, averages = model.get_weights(), ema.get_weights()
    optimizer, counts = optimizer_weights(model.optimizer), probe.counts(ema)
    raw = probe.raw_weights(ema)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    assert equal(model.get_weights(), shown)
    assert equal(optimizer_weights(model.optimizer), optimizer)
    assert equal(ema.get_weights(), averages)
    assert equal(probe.raw_weights(ema), raw)
    assert probe.counts(ema) == counts


def test_what_refuses_a_damaged_file_takes_the_whole_one(trained):
    _, _, donor = trained
    again = EMA(0.9)
    other = fresh(models.dense, again)
    other.load_weights(donor)
    assert probe.counts(again).now == 6


def test_the_average_of_another_choice_of_weights_is_refused(trained):
    _, _, path = trained
    ema = EMA(0.9, include="kernel")
    model = fresh(models.dense, ema)
    before = model.get_weights()
    with pytest.raises(ValueError, match="of this model's weights"):
        model.load_weights(path)
    assert equal(model.get_weights(), before)


def test_with_skip_mismatch_a_bad_average_is_a_warning(trained, tmp_path):
    _, _, donor = trained
    path = edited(shutil.copy(donor, tmp_path), EDITS["a newer format"][0])
    model, ema = compiled(models.dense()), EMA(0.9)
    fit(model, ema)
    averages = ema.get_weights()
    with pytest.warns(UserWarning, match="version=3"):
        model.load_weights(path, skip_mismatch=True)
    assert not equal(model.get_weights(), averages)
    assert equal(ema.get_weights(), averages)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_changes_nothing(kept, trained, tmp_path):
    model, ema, donor = trained
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
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    fit(model, ema)
    averages = model.get_weights()
    ema.restore()
    raw = model.get_weights()
    ema.save_weights(tmp_path / "a.weights.h5")
    assert equal(model.get_weights(), raw)
    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert set(file) == {"layers", "vars"}
    plain = fresh(models.batch_norm)
    plain.load_weights(tmp_path / "a.weights.h5")
    assert equal(plain.get_weights(), averages)
    assert [p.name for p in tmp_path.iterdir()] == ["a.weights.h5"]


def test_save_weights_in_mid_epoch_does_not_disturb_training(tmp_path):
    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ema.save_weights(tmp_path / "a.weights.h5")

    runs = []
    for callbacks in ([], [Save()]):
        model, ema = compiled(models.batch_norm()), EMA(0.9)
        fit(model, ema, *callbacks)
        runs.append([*snapshot(model, ema)])
    assert equal(*runs)


def test_save_weights_refuses_what_it_cannot_do(tmp_path):
    model, ema = compiled(models.dense()), EMA(0.9)
    with pytest.raises(ValueError, match="needs a model"):
        ema.save_weights(tmp_path / "a.weights.h5")
    ema.set_model(model)
    with pytest.raises(ValueError, match="no average before the first update"):
        ema.save_weights(tmp_path / "a.weights.h5")
    fit(model, ema)
    with pytest.raises(ValueError, match=r"must end in `\.weights\.h5`"):
        ema.save_weights(tmp_path / "a.keras")
    with pytest.raises(FileNotFoundError):
        ema.save_weights(tmp_path / "nowhere" / "a.weights.h5")
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


@pytest.mark.parametrize(
    "options", ["default", "every", "textbook", "SWA", "LAWA", "SWAG", "BEMA"]
)
def test_an_orbax_checkpoint_goes_on_as_the_saved_model(options, tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="Orbax is for JAX")
    model, ema = compiled(models.nested()), AVERAGES[options]()
    checkpoint = keras.callbacks.OrbaxCheckpoint(tmp_path / "orbax")
    fit(model, checkpoint, ema)
    checkpoint.wait_until_finished()
    keras.utils.clear_session()  # Orbax goes by names, those of a new process.
    again = AVERAGES[options]()
    other = fresh(models.nested, again)
    other.load_weights(tmp_path / "orbax")
    assert equal(other.get_weights(), model.get_weights())
    assert equal(snapshot(other, again), snapshot(model, ema))
    fit(model, ema)
    fit(other, again)
    assert equal(snapshot(other, again), snapshot(model, ema))


def test_a_model_without_an_average_loads_the_orbax_checkpoint(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="Orbax is for JAX")
    model, ema = compiled(models.shared()), EMA(0.9)
    checkpoint = keras.callbacks.OrbaxCheckpoint(tmp_path / "orbax")
    fit(model, ema, checkpoint)
    checkpoint.wait_until_finished()
    keras.utils.clear_session()
    plain = fresh(models.shared)
    plain.load_weights(tmp_path / "orbax")
    assert equal(plain.get_weights(), model.get_weights())
    loaded = keras.models.load_model(tmp_path / "orbax")
    assert equal(loaded.get_weights(), model.get_weights())
