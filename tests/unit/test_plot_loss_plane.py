"""The plane through three points: coordinates, scores and plot."""

import re
import runpy
import sys

import keras
import numpy
import pytest
from matplotlib import pyplot
from models import equal

from keras_wavg import plots
from keras_wavg.plots import (
    LossPlane,
    draw_loss_plane,
    loss_plane,
    plot_loss_plane,
)
from keras_wavg.plots.contours import _tick_labels

pytestmark = pytest.mark.usefixtures("figures")

CENTER = numpy.array([1.0, -2.0, 0.5])
CURVATURE = numpy.array([1.0, 4.0, 0.25])


def three_weights():
    """Return a model with two weights in a kernel and one in a bias."""
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def weights(*numbers):
    return [numpy.array([[n] for n in numbers[:2]]), numpy.array(numbers[2:])]


def quadratic(vector):
    return float((CURVATURE * (vector - CENTER) ** 2).sum())


def score_of(model):
    """Return a score that is a quadratic function of the weights."""
    return lambda: quadratic(
        numpy.concatenate([w.ravel() for w in model.get_weights()])
    )


POINTS = {
    "first": weights(1, 0, 0),
    "second": weights(3, 0, 0),
    "third": weights(2, 3, 4),
}


def measured(model, **options):
    return loss_plane(model, POINTS, score_of(model), verbose=0, **options)


def test_coordinates_are_distances_in_weight_space():
    marks = {"mark": weights(2, 1, 0)}
    plane = measured(three_weights(), resolution=2, marks=marks)
    expected = {"first": (0, 0), "second": (2, 0), "third": (1, 5)}
    for name, position in expected.items():
        assert plane.points[name] == pytest.approx(position)
    # The mark is off the plane; the y axis is (0, 0.6, 0.8).
    assert plane.marks["mark"] == pytest.approx((1, 0.6))


def test_scores_are_those_of_the_weights_on_the_plane():
    plane = measured(three_weights(), resolution=5)
    right, up = numpy.array([1, 0, 0]), numpy.array([0, 0.6, 0.8])
    expected = [
        [
            quadratic(numpy.array([1, 0, 0]) + x * right + y * up)
            for x in plane.x
        ]
        for y in plane.y
    ]
    assert plane.scores.shape == (5, 5)
    assert plane.scores == pytest.approx(numpy.array(expected), rel=1e-5)


def test_the_grid_is_a_square_around_points_and_marks():
    plane = measured(three_weights(), resolution=3, margin=0.1)
    assert plane.x == pytest.approx([-2, 1, 4])
    assert plane.y == pytest.approx([-0.5, 2.5, 5.5])
    far = {"far": weights(11, 0, 0)}
    plane = measured(three_weights(), resolution=2, margin=0, marks=far)
    assert plane.x == pytest.approx([0, 10])
    assert plane.y == pytest.approx([-2.5, 7.5])


def test_verbose_controls_the_progress_bar(capsys):
    model = three_weights()
    measured(model, resolution=2)
    assert not capsys.readouterr().out
    loss_plane(model, POINTS, score_of(model), resolution=2)
    assert "4/4" in capsys.readouterr().out


def color_bar(ax):
    (bar,) = set(ax.figure.axes) - {ax}
    return bar


def test_existing_axes_can_be_used(tmp_path):
    model, (_, ax) = three_weights(), pyplot.subplots()
    received = plot_loss_plane(
        model,
        POINTS,
        score_of(model),
        resolution=7,
        marks={"average": weights(2, 1, 4 / 3)},
        ax=ax,
        label="training loss",
        verbose=0,
    )
    assert received is ax
    names = {text.get_text() for text in ax.texts}
    assert names == {"first", "second", "third", "average"}
    assert color_bar(ax).get_ylabel() == "training loss"
    ax.figure.savefig(tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 10_000


def test_without_axes_a_figure_is_created():
    plane = measured(three_weights(), resolution=4)
    first, second = draw_loss_plane(plane), draw_loss_plane(plane)
    assert first.figure is not second.figure


def plane_of(scores):
    steps = numpy.arange(len(scores), dtype="float64")
    corners = {"a": (0.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0)}
    return LossPlane(corners, {}, steps, steps, numpy.asarray(scores))


def ticks(ax):
    return [text.get_text() for text in color_bar(ax).get_yticklabels()]


def test_levels_are_dense_near_the_lowest_score():
    across = numpy.linspace(-1, 1, 41)
    scores = 0.02 + numpy.exp(6 * (across**2 + across[:, None] ** 2)) - 1
    levels = [float(text) for text in ticks(draw_loss_plane(plane_of(scores)))]
    distances = numpy.diff(levels)
    assert levels[0] == 0.02
    assert (distances[1:] > 1.2 * distances[:-1]).all()
    assert levels[-1] < scores.max()


def test_scores_that_are_not_finite_are_not_drawn(tmp_path):
    scores = numpy.arange(25.0).reshape(5, 5)
    scores[0, :3] = numpy.nan, numpy.inf, -numpy.inf
    ax = draw_loss_plane(plane_of(scores))
    assert ticks(ax)[0] == "3.0"
    ax.figure.savefig(tmp_path / "plane.png", dpi=20)


def test_a_constant_score_can_be_drawn(tmp_path):
    for constant in (0.0, 0.3, -5.0):
        ax = draw_loss_plane(plane_of(numpy.full((4, 4), constant)))
        ax.figure.savefig(tmp_path / "plane.png", dpi=20)


def test_ticks_have_the_fewest_digits_that_distinguish_them():
    for levels, expected in (
        ([0.0101, 0.4999, 3, 150.2], ["0.010", "0.50", "3.0", "150"]),
        ([1.001, 1.002, 1.011], ["1.001", "1.002", "1.011"]),
        ([0.0, 1e-6, 2e7], ["0.0", "1e-06", "2e+07"]),
    ):
        assert _tick_labels(numpy.array(levels)) == expected


def test_two_different_scores_have_two_levels(tmp_path):
    ax = draw_loss_plane(plane_of(numpy.eye(4)))
    assert ticks(ax) == ["0.0", "1.0"]
    ax.figure.savefig(tmp_path / "plane.png", dpi=20)


def test_repr_is_one_line_without_arrays():
    plane = plane_of([[1.0, numpy.nan], [0.25, numpy.inf]])
    assert repr(plane) == (
        "LossPlane(points=['a', 'b', 'c'], marks=[], grid=2x2, "
        "scores=0.25 to 1)"
    )
    nothing = plane_of(numpy.full((2, 2), numpy.nan))
    assert repr(nothing).endswith("scores=none finite)")


def test_without_a_finite_score_drawing_is_refused():
    with pytest.raises(ValueError, match="at least one finite score"):
        draw_loss_plane(plane_of(numpy.full((4, 4), numpy.nan)))


FIRST, SECOND, THIRD = POINTS.values()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"a": FIRST, "b": SECOND}, r"three points.*points=\['a', 'b'\]"),
        ({"a": FIRST, "b": SECOND, "c": weights(9, 0, 0)}, "not on one line"),
        ({"a": FIRST, "b": FIRST, "c": THIRD}, "not on one line"),
        ({"a": FIRST, "b": SECOND, "c": FIRST}, "not on one line"),
        ({"a": FIRST, "b": FIRST, "c": FIRST}, "not on one line"),
        ({"a": FIRST, "b": SECOND, "c": THIRD[:1]}, r"'c' must have the shap"),
        (
            {"a": FIRST, "b": SECOND, "c": [w.T for w in THIRD]},
            r"'c' must have .*\(2, 1\), \(1,\).* Received: \[\(1, 2\), \(1,\)",
        ),
        (
            {"a": FIRST, "b": SECOND, "c": weights(1, numpy.nan, 1)},
            "'c' must be finite",
        ),
    ],
)
def test_points_that_do_not_span_a_plane_are_refused(points, message):
    model = three_weights()
    with pytest.raises(ValueError, match=message):
        loss_plane(model, points, score_of(model), verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 1}, r"`resolution` must .* Received: resolution=1"),
        ({"resolution": 2.5}, r"`resolution` must .* resolution=2.5"),
        ({"margin": -0.1}, r"`margin` must .* Received: margin=-0.1"),
        ({"margin": "0.1"}, r"`margin` must .* Received: margin='0.1'"),
        ({"marks": {"d": FIRST[:1]}}, r"'d' must have the shapes"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measured(three_weights(), **arguments)


@pytest.mark.parametrize("score", [[1, 2], "good"], ids=str)
def test_a_score_that_is_not_a_number_is_refused(score):
    model = three_weights()
    before = model.get_weights()
    message = re.escape(f"return a number. Received: {score!r}")
    with pytest.raises(ValueError, match=message):
        loss_plane(model, POINTS, lambda: score, verbose=0)
    assert equal(model.get_weights(), before)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "keras-wavg\[plots\]"'):
        runpy.run_path(plots.__file__)
