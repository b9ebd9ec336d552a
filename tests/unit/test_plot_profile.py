"""`plot_profile`: densities, stems, mean ages and the legend."""

import keras
import numpy
import pytest
from keras import layers
from matplotlib import pyplot

from keras_wavg import BEMA, EMA, SWA, PowerEMA, Profile
from keras_wavg.plots import plot_profile

pytestmark = pytest.mark.usefixtures("figures")

STEPS = 2000
EVERY_50 = numpy.arange(50, STEPS + 1, 50)


def densities(ax):
    return [patch.get_data()[:2] for patch in ax.patches]


def density(profile):
    (outline,) = densities(plot_profile(profile))
    return outline


def stems(ax):
    """Return step, height as a fraction of the axes, and whether filled."""
    lines = [line for line in ax.lines if line.get_marker() == "o"]
    return [
        (
            line.get_xdata()[1],
            line.get_ydata()[1],
            line.get_markerfacecolor() == line.get_color(),
        )
        for line in lines
    ]


def mean_ages(ax):
    return [
        line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"
    ]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def profile_of(average, steps=60):
    """Return the profile of an average after some optimizer steps."""
    average.set_model(keras.Sequential([keras.Input((1,)), layers.Dense(1)]))
    for _ in range(steps):
        average.update()
    return average.profile()


def test_the_area_under_a_curve_is_the_sum_of_coefficients():
    profiles = [
        Profile.ema(0.99, STEPS),
        Profile.ema(0.999, 2003),
        Profile.power(0.1, STEPS),
        Profile.power(0.1, 3),
        Profile.mean(EVERY_50[-5:], STEPS),
        Profile.mean([1203, 1250, 1999], STEPS),
    ]
    ax = plot_profile(dict(zip("abcdef", profiles, strict=True)))
    for profile, (heights, edges) in zip(profiles, densities(ax), strict=True):
        areas = heights * numpy.diff(edges)
        expected = profile.cumulative(edges[1:])
        assert areas.sum() == pytest.approx(1), str(profile)
        assert areas.cumsum() == pytest.approx(expected), str(profile)


def test_a_short_training_shows_each_coefficient():
    profile = Profile.ema(0.9, steps=7)
    heights, edges = density(profile)
    assert edges.tolist() == list(range(8))
    assert heights == pytest.approx(profile.coefficients)


def test_a_sample_is_spread_over_the_steps_that_it_represents():
    each = Profile.mean(numpy.arange(1501, STEPS + 1), STEPS)
    rarely = Profile.mean(numpy.arange(1550, STEPS + 1, 50), STEPS)
    (first, edges), (second, _) = densities(
        plot_profile({"each": each, "rarely": rarely})
    )
    assert second == pytest.approx(first, abs=1e-12)
    assert first[edges[:-1] >= 1500] == pytest.approx(1 / 500)
    assert first[edges[1:] <= 1500] == pytest.approx(0, abs=1e-12)


def test_a_long_training_has_few_bins_and_the_exact_peak():
    heights, edges = density(Profile.ema(0.99, steps=1_000_000))
    assert len(edges) <= 2001
    assert heights[-1] == heights.max() == pytest.approx(0.01)
    assert (heights * numpy.diff(edges)).sum() == pytest.approx(1)


def test_the_weights_from_before_training_are_a_stem():
    profile = profile_of(EMA(0.98, bias_correction=False))
    ax = plot_profile({"textbook": profile})
    assert stems(ax) == [(0, pytest.approx(0.95 * 0.98**60), True)]
    assert labels(ax)[0].endswith(f", ● initial weights {0.98**60:.1%}")
    ((heights, edges),) = densities(ax)
    assert (heights * numpy.diff(edges)).sum() == pytest.approx(1 - 0.98**60)


def test_the_weights_from_which_an_average_starts_are_a_stem():
    profile = profile_of(EMA(0.98, bias_correction=False, start_step=20))
    ax = plot_profile(profile)
    assert stems(ax) == [(20, pytest.approx(0.95 * 0.98**40), True)]
    ((heights, _),) = densities(ax)
    assert heights.max() == pytest.approx(0.02)


@pytest.mark.parametrize("start", [0, 10])
def test_a_negative_coefficient_is_a_hollow_stem(start):
    profile = profile_of(BEMA(1, start_step=start))
    ax = plot_profile(profile)
    (coefficient,) = profile.coefficients[profile.times == start]
    assert coefficient < 0
    assert stems(ax) == [(start, pytest.approx(-0.95 * coefficient), False)]
    assert labels(ax)[0].endswith(f"○ initial weights {coefficient:.1%}")
    assert ax.get_ylim()[0] == 0


def test_other_averages_have_no_stem():
    averages = {
        "ema": EMA(0.9),
        "ema_7": EMA(0.9, every_steps=7),
        "warm-up": EMA(0.9, warmup=True),
        "textbook": EMA(0.9, bias_correction=False),
        "power": PowerEMA(0.1),
        "power_7": PowerEMA(0.2, every_steps=7),
        "swa": SWA(every_steps=20),
    }
    profiles = {
        name: profile_of(average, steps=90)
        for name, average in averages.items()
    }
    assert stems(plot_profile(profiles)) == []


def test_a_single_sample_is_a_stem():
    ax = plot_profile(Profile.mean([500], STEPS))
    assert stems(ax) == [(500, 0.95, True)]
    assert labels(ax)[0].endswith(" 0")  # sigma_rel
    assert ax.get_ylim() == pytest.approx((0, 1.05 / STEPS))


def test_a_stem_does_not_change_the_y_axis():
    ema = Profile.ema(0.99, STEPS)
    alone = plot_profile(ema).get_ylim()
    both = plot_profile({"ema": ema, "raw": Profile.mean([STEPS], STEPS)})
    assert both.get_ylim() == pytest.approx(alone)
    assert alone == pytest.approx((0, 0.0105))


def test_mean_ages_are_marked_unless_negative():
    ema = Profile.ema(0.99, STEPS)
    assert mean_ages(plot_profile(ema)) == [pytest.approx(1901)]
    ahead = profile_of(BEMA(1, bias_power=0.0))
    assert ahead.mean_age < 0
    ax = plot_profile(ahead)
    assert mean_ages(ax) == []
    assert ax.get_xlim()[1] < 62


def test_the_legend_has_names_and_figures():
    profiles = {
        "EMA": Profile.ema(0.99, STEPS),
        "power function": Profile.power(0.1, 1_000_000),
    }
    assert labels(plot_profile(profiles)) == [
        r"EMA: ▲ mean age 99, $\sigma_\mathrm{rel}$ 0.0497",
        r"power function: ▲ mean age 112000, $\sigma_\mathrm{rel}$ 0.1",
    ]
    assert labels(plot_profile(profiles["EMA"])) == [
        r"▲ mean age 99, $\sigma_\mathrm{rel}$ 0.0497"
    ]


def test_ten_profiles_have_different_styles_and_fit():
    profiles = {
        f"PowerEMA({width:.2f})": Profile.power(width, STEPS)
        for width in numpy.linspace(0.02, 0.28, 10)
    }
    ax = plot_profile(profiles)
    styles = {(p.get_edgecolor(), p.get_linestyle()) for p in ax.patches}
    assert len(styles) == 10
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    figure = ax.figure.bbox
    assert figure.y0 <= legend.y0 <= legend.y1 <= figure.y1
    assert figure.x0 <= legend.x0 <= legend.x1 <= figure.x1
    assert legend.y0 >= ax.bbox.y1
    assert ax.bbox.height > 0.4 * figure.height


def test_a_long_name_fits():
    name = "an exponential moving average with a very long name"
    ax = plot_profile({name: profile_of(EMA(0.99, bias_correction=False))})
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.x1 <= ax.figure.bbox.x1
    assert ax.bbox.width > 0.7 * ax.figure.bbox.width


def test_existing_axes_can_be_used():
    _, ax = pyplot.subplots()
    assert plot_profile(Profile.ema(0.9, 10), ax=ax) is ax
    assert ax.get_xlabel() == "optimizer step"
    assert ax.get_ylabel() == "coefficient per step"
    new = plot_profile(Profile.ema(0.9, 10))
    assert new.figure is not ax.figure


def test_a_second_plot_on_the_same_axes_extends_them():
    ax = plot_profile(Profile.ema(0.9, 10))
    plot_profile(Profile.ema(0.5, 100), ax=ax)
    assert ax.get_xlim()[1] == pytest.approx(102)
    assert ax.get_ylim() == pytest.approx((0, 0.525))


def test_step_ticks_are_integers():
    for steps in (1, 2, 5):
        ax = plot_profile(Profile.ema(0.9, steps))
        ax.figure.draw_without_rendering()
        inside = [t for t in ax.get_xticks() if 0 <= t <= steps]
        assert inside == sorted({round(tick) for tick in inside})
        assert inside


@pytest.mark.parametrize(
    "profiles",
    [{}, [Profile.ema(0.9, 3)], {"a": [0.5, 0.5]}, EMA(0.9), None],
    ids=["empty", "list", "numbers", "callback", "none"],
)
def test_invalid_profiles_are_refused(profiles):
    with pytest.raises(ValueError, match=r"`profiles` must be .* Received: "):
        plot_profile(profiles)
