"""Checkpoints that callbacks of Keras have saved are selected."""

import inspect
import re

import numpy
import pytest
import weights_files

from keras_wavg import arguments, average_checkpoints, select_checkpoints


def touch(directory, *names):
    for name in names:
        (directory / name).touch()


def names(selection):
    return [path.name for path in selection]


LOSSES = [0.9, 0.4, 0.6, 0.5]


def saved(models, directory, filepath):
    """Call `ModelCheckpoint` and `CSVLogger` as `fit` does."""
    model = models.fresh()
    callbacks = models.keras.callbacks.CallbackList(
        [
            models.keras.callbacks.CSVLogger(directory / "log.csv"),
            models.keras.callbacks.ModelCheckpoint(
                directory / filepath, save_weights_only=True
            ),
        ],
        model=model,
    )
    callbacks.on_train_begin()
    for epoch, loss in enumerate(LOSSES):
        model.set_weights([numpy.full(w.shape, epoch) for w in model.weights])
        callbacks.on_epoch_end(epoch, {"loss": 1 - loss, "val_loss": loss})
    callbacks.on_train_end()


def test_checkpoints_are_selected_by_the_metric_in_their_names(
    models, tmp_path
):
    pattern = "{epoch:02d}-{val_loss:.6f}.weights.h5"
    saved(models, tmp_path, pattern)
    for options in (
        {},
        {"pattern": pattern},
        {"csv_log": tmp_path / "log.csv"},
    ):
        selection = select_checkpoints(tmp_path, best=2, **options)
        assert [c.epoch for c in selection.selected] == [2, 4]
        assert selection.rule == "the 2 with the lowest val_loss, of 4"
    average_checkpoints(selection, tmp_path / "mean.weights.h5")
    got = weights_files.read(tmp_path / "mean.weights.h5")
    assert (got["layers/dense/vars/0"] == 2).all()
    # The output in the same directory is not selected.
    assert len(select_checkpoints(tmp_path, best=4)) == 4


def test_checkpoints_are_selected_by_the_metric_in_a_log(models, tmp_path):
    saved(models, tmp_path, "w{epoch}.weights.h5")
    selection = select_checkpoints(
        tmp_path,
        best=1,
        monitor="loss",
        mode="max",
        csv_log=tmp_path / "log.csv",
    )
    assert names(selection) == ["w2.weights.h5"]


def test_the_last_are_those_of_the_highest_epochs(tmp_path):
    touch(tmp_path, *(f"model_{e}.keras" for e in (1, 2, 9, 10, 11)))
    selection = select_checkpoints(tmp_path, last=3)
    assert names(selection) == [f"model_{e}.keras" for e in (9, 10, 11)]
    selection = select_checkpoints(tmp_path, last=2, until_epoch=10)
    assert names(selection) == ["model_9.keras", "model_10.keras"]
    assert selection.excluded[tmp_path / "model_11.keras"] == "after epoch 10"


def test_of_equal_scores_the_later_is_better(tmp_path):
    touch(tmp_path, *(f"{e}-0.500.keras" for e in (1, 2, 3)), "4-0.900.keras")
    assert names(select_checkpoints(tmp_path, best=2)) == [
        "2-0.500.keras",
        "3-0.500.keras",
    ]


def test_a_higher_accuracy_is_better(tmp_path):
    touch(tmp_path, "1-0.90.keras", "2-0.95.keras", "3-0.80.keras")
    options = {"best": 1, "monitor": "val_accuracy"}
    assert names(select_checkpoints(tmp_path, **options)) == ["2-0.95.keras"]
    selection = select_checkpoints(tmp_path, mode="min", **options)
    assert names(selection) == ["3-0.80.keras"]


def test_a_checkpoint_whose_metric_is_missing_or_nan_is_excluded(tmp_path):
    touch(tmp_path, "1-nan.keras", "2-0.5.keras", "3-1e-3.keras", "4.keras")
    selection = select_checkpoints(tmp_path, best=2)
    assert names(selection) == ["2-0.5.keras", "3-1e-3.keras"]
    assert set(selection.excluded.values()) == {"has no val_loss"}
    with pytest.raises(ValueError, match=r"which has 2; 1-nan.keras: has no"):
        select_checkpoints(tmp_path, best=3)


def test_the_latest_row_of_an_epoch_in_a_log_counts(tmp_path):
    touch(tmp_path, "1.keras", "2.keras", "3.keras")
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_loss\n0,1\n1,9\n1,0.1\n2,NA\n")
    selection = select_checkpoints(tmp_path, best=1, csv_log=log)
    assert [(c.epoch, c.score) for c in selection.selected] == [(2, 0.1)]
    reason = selection.excluded[tmp_path / "3.keras"]
    assert reason == "has no val_loss in 'log.csv'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"val_loss,epoch\n0.1\n0.2,1\n", "row 2"),
        (b"epoch,val_loss\n0.0,1\n", "an integer `epoch` in each row"),
        (b"epoch,val_loss\n0,1\nx,1\n", "row 3"),
        (b"epoch,val_loss\n" + b"9" * 5000 + b",1\n", r"\.\.\. \(5,"),
        (b"epoch,val_loss\n0," + b"1" * 200_000, "must be a file of `CSV"),
        (b"\xff\xfe\x00", "must be a file of `CSVLogger`"),
        (b"epoch,val_loss\n0,1\0\n", "has no val_loss in 'log.csv'"),
        (b"", "must have the columns"),
    ],
    ids=range(8),
)
def test_an_invalid_log_is_refused(content, message, tmp_path):
    touch(tmp_path, "1.keras")
    log = tmp_path / "log.csv"
    log.write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.csv") as error:
        select_checkpoints(tmp_path, best=1, csv_log=log)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_shards_belong_to_their_index(tmp_path):
    touch(tmp_path, "1.weights.json", "1_00000.weights.h5")
    touch(tmp_path, "2_00007.weights.h5")
    selection = select_checkpoints(tmp_path, last=2)
    assert names(selection) == ["1.weights.json", "2_00007.weights.h5"]


@pytest.mark.parametrize(
    ("name", "epoch", "score"),
    [
        ("03-0.125.weights.h5", 3, 0.125),
        ("w.07.keras", 7, None),
        ("2024-05.weights.h5", 5, None),
        ("model_epoch_12-1.5e-03.weights.json", 12, 0.0015),
        ("a3--0.5.keras", 3, -0.5),
        ("x-3-0.500.weights.h5", 3, 0.5),
        ("4-inf.keras", 4, float("inf")),
    ],
)
def test_names_are_parsed(name, epoch, score, tmp_path):
    touch(tmp_path, name)
    (candidate,) = select_checkpoints(tmp_path, last=1).selected
    assert (candidate.epoch, candidate.score) == (epoch, score)


def test_a_pattern_selects_files_and_fields(tmp_path):
    touch(tmp_path, "a-1-0.9-5.keras", "b-1-0.9-5.keras", "a-2-0.8-7.keras")
    selection = select_checkpoints(
        tmp_path,
        best=1,
        monitor="recall",
        pattern="directory/a-{epoch}-{loss:.1f}-{recall}.keras",
    )
    assert names(selection) == ["a-2-0.8-7.keras"]


@pytest.mark.parametrize("monitor", ["val_top-5", "val.loss", "", "1st"])
def test_a_metric_in_a_pattern_may_have_any_name(monitor, tmp_path):
    touch(tmp_path, "1-0.900.keras", "2-0.500.keras", "final.keras")
    pattern = f"{{epoch}}-{{{monitor}:.3f}}.keras"
    options = {"monitor": monitor, "mode": "max", "pattern": pattern}
    selection = select_checkpoints(tmp_path, best=1, **options)
    assert names(selection) == ["1-0.900.keras"]
    reason = selection.excluded[tmp_path / "final.keras"]
    assert reason == "its name does not match `pattern`"


def test_a_repeated_field_has_one_value(tmp_path):
    touch(tmp_path, "1-1.keras", "1-2.keras")
    selection = select_checkpoints(
        tmp_path, last=1, pattern="{epoch}-{epoch}.keras"
    )
    assert names(selection) == ["1-1.keras"]


def test_a_selection_is_shown_as_a_table(tmp_path):
    touch(tmp_path, "1-0.9.keras", "2-0.5.keras", "final.keras")
    selection = select_checkpoints(tmp_path, best=1)
    text = str(selection)
    assert "the 1 with the lowest val_loss, of 2" in text
    assert "2-0.5.keras" in text
    assert "its name has no epoch" in text
    assert repr(selection) == (
        "Selection(rule='the 1 with the lowest val_loss, of 2', "
        "selected=1, excluded=2)"
    )


BAD = {
    "neither": ({}, "Exactly one of `last` and `best`"),
    "both": ({"last": 1, "best": 1}, "Exactly one of `last` and `best`"),
    "zero": ({"last": 0}, "`last` must be an integer >= 1"),
    "mode": ({"best": 1, "mode": "up"}, "`mode` must be"),
    "no epoch": ({"last": 1, "pattern": "{loss}.keras"}, "the field `{epoch}`"),
    "too many": ({"last": 3}, "which has 1"),
    "unknown metric": ({"best": 1, "monitor": "x"}, "Pass `mode='max'`"),
    "twice": ({"last": 1}, "one checkpoint for each epoch"),
    "no column": ({"best": 1, "csv_log": "log.csv"}, "the columns `epoch` and"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "1-0.5.keras", *(["x1.keras"] if name == "twice" else []))
    (tmp_path / "log.csv").write_text("epoch,loss\n0,1\n")
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        select_checkpoints(tmp_path, **options)


def test_the_direction_of_a_metric_is_that_of_keras(models):
    from keras.src.metrics import ALL_OBJECTS_DICT, Metric

    required = {
        "num_classes": 2,
        "target_class_ids": [0],
        "precision": 0.5,
        "recall": 0.5,
        "sensitivity": 0.5,
        "specificity": 0.5,
    }
    checked = set()
    for name, metric in ALL_OBJECTS_DICT.items():
        if not isinstance(metric, type) or not issubclass(metric, Metric):
            continue
        parameters = inspect.signature(metric).parameters
        if "fn" in parameters:
            continue
        options = {
            name: value
            for name, value in required.items()
            if name in parameters
            and parameters[name].default is inspect.Parameter.empty
        }
        direction = getattr(metric(**options), "_direction", None)
        if direction is None:
            continue
        checked.add(direction)
        for monitor in (name, f"val_{name}", f"{name}_3"):
            is_higher_better = arguments.is_higher_better(monitor, "auto")
            assert is_higher_better == (direction == "up"), monitor
    assert checked == {"up", "down"}
    with pytest.raises(ValueError, match="Pass `mode"):
        arguments.is_higher_better("mean", "auto")
