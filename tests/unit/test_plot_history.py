"""`plot_history`: raw weights and averages, and the best epoch of each."""

import math

import keras
import numpy
import pytest
from matplotlib import pyplot

from keras_wavg.plots import plot_history

pytestmark = pytest.mark.usefixtures("figures")

NAN = math.nan
HISTORY = {
    "loss": [9.0, 8.0, 7.0],
    "val_loss": [0.8, 0.6, 0.4],
    "ema_val_loss": [0.8, 0.6, 0.4],
    "raw_val_loss": [0.9, 0.5, 0.7],
    "slow_ema_val_loss": [0.85, 0.95, 0.75],
    "raw_val_accuracy": [0.3, 0.9, 0.5],
    "ema_val_accuracy": [0.3, 0.6, 0.8],
}


def curves(ax):
    """Return epochs and values by name."""
    return {
        line.get_label().split(":")[0]: line.get_xydata().T.tolist()
        for line in ax.lines
    }


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def best(ax):
    """Return the points that have a dot, by name."""
    return {
        line.get_label().split(":")[0]: line.get_xydata()[
            line.get_markevery()
        ].tolist()
        for line in ax.lines
    }


def test_raw_is_the_first_curve_then_each_average():
    drawn = curves(plot_history(HISTORY))
    assert list(drawn) == ["raw", "ema", "slow_ema"]
    assert drawn == {
        "raw": [[1, 2, 3], [0.9, 0.5, 0.7]],
        "ema": [[1, 2, 3], [0.8, 0.6, 0.4]],
        "slow_ema": [[1, 2, 3], [0.85, 0.95, 0.75]],
    }


def test_only_raw_is_gray():
    colors_used = [line.get_color() for line in plot_history(HISTORY).lines]
    red, green, blue = pyplot.matplotlib.colors.to_rgb(colors_used[0])
    assert red == green == blue
    assert len(set(colors_used)) == 3


def test_a_dot_and_the_legend_show_the_best_epoch():
    ax = plot_history(HISTORY)
    assert best(ax) == {
        "raw": [[2, 0.5]],
        "ema": [[3, 0.4]],
        "slow_ema": [[3, 0.75]],
    }
    assert labels(ax) == [
        "raw: lowest 0.5000, epoch 2",
        "ema: lowest 0.4000, epoch 3",
        "slow_ema: lowest 0.7500, epoch 3",
    ]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("auto", "highest 0.9000"), ("max", "highest 0.9"), ("min", "lowest 0.3")],
)
def test_mode_selects_the_lowest_or_the_highest(mode, expected):
    ax = plot_history(HISTORY, "val_accuracy", mode=mode)
    assert labels(ax)[0].startswith(f"raw: {expected}")
    assert ax.get_ylabel() == "val_accuracy"


def test_epochs_without_evaluation_are_interpolated():
    history = {
        "raw_val_loss": [0.9, NAN, NAN, 0.3, NAN],
        "ema_val_loss": [0.8, NAN, NAN, 0.6, NAN],
    }
    drawn = curves(plot_history(history))
    assert drawn["raw"] == [[1, 4], [0.9, 0.3]]
    assert drawn["ema"] == [[1, 4], [0.8, 0.6]]


def test_an_infinite_score_is_never_the_best():
    history = {"raw_val_loss": [-math.inf, 2.0, math.inf, 1.0]}
    assert best(plot_history(history)) == {"raw": [[4, 1.0]]}


def test_without_a_finite_score_there_is_no_best():
    history = {"raw_val_loss": [1.0, 2.0], "ema_val_loss": [NAN, math.inf]}
    ax = plot_history(history)
    assert labels(ax) == ["raw: lowest 1.000, epoch 1", "ema"]
    assert best(ax)["ema"] == []


def test_epochs_continue_those_of_a_resumed_fit():
    history = keras.callbacks.History()
    history.history, history.epoch = HISTORY, [7, 8, 9]
    assert curves(plot_history(history))["raw"][0] == [8, 9, 10]


def test_epoch_ticks_are_integers_from_1():
    for epochs in (1, 2, 5, 300):
        ax = plot_history({"raw_val_loss": numpy.ones(epochs)})
        ticks = [t for t in ax.get_xticks() if t >= ax.get_xlim()[0]]
        assert ticks == [round(tick) for tick in ticks]
        assert min(ticks) >= 1


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_ticks_have_no_multiplier(factor):
    ax = plot_history({"raw_val_loss": [factor, 2 * factor, 3 * factor]})
    ax.figure.draw_without_rendering()
    assert not ax.yaxis.get_offset_text().get_text()


def test_existing_axes_can_be_used():
    _, ax = pyplot.subplots()
    assert plot_history(HISTORY, ax=ax) is ax
    assert ax.get_xlabel() == "epoch"
    assert plot_history(HISTORY).figure is not ax.figure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"monitor": "val_auc"},
            r"`monitor` must .* monitor='val_auc', and .*ema",
        ),
        ({"monitor": "loss"}, r"`monitor` must .* Received: monitor='loss'"),
        ({"history": {}}, r"`monitor` must .* a history of \[\]"),
        ({"history": [0.5]}, r"`history` must .* history=\[0.5\]"),
        ({"mode": "best"}, r"`mode` must .* Received: mode='best'"),
        ({"monitor": "val_score"}, r"`mode='auto'`.* monitor='val_score'"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_history(**{"history": HISTORY} | arguments)
