"""The picture of profiles: densities, pins, mean ages, and their names."""

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
    (found,) = densities(plot_profile(profile))
    return found


def pins(ax):
    """Place, height as a share of the picture, and whether it is filled."""
    found = [line for line in ax.lines if line.get_marker() == "o"]
    return [
        (
            line.get_xdata()[1],
            line.get_ydata()[1],
            line.get_markerfacecolor() == line.get_color(),
        )
        for line in found
    ]


def mean_ages(ax):
    return [
        line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"
    ]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def profile_of(average, steps=60):
    """The profile of an average after so many optimizer steps."""
    average.set_model(keras.Sequential([keras.Input((1,)), layers.Dense(1)]))
    for _ in range(steps):
        average.update()
    return average.profile()


def test_the_area_under_a_curve_is_the_share_of_those_steps():
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


def test_each_of_few_steps_has_its_share():
    profile = Profile.ema(0.9, steps=7)
    heights, edges = density(profile)
    assert edges.tolist() == list(range(8))
    assert heights == pytest.approx(profile.shares)


def test_a_rare_sample_is_as_high_as_those_of_the_steps_it_stands_for():
    each = Profile.mean(numpy.arange(1501, STEPS + 1), STEPS)
    rarely = Profile.mean(numpy.arange(1550, STEPS + 1, 50), STEPS)
    (first, edges), (second, _) = densities(
        plot_profile({"each": each, "rarely": rarely})
    )
    assert second == pytest.approx(first, abs=1e-12)
    assert first[edges[:-1] >= 1500] == pytest.approx(1 / 500)
    assert first[edges[1:] <= 1500] == pytest.approx(0, abs=1e-12)


def test_a_long_run_is_few_points_and_keeps_its_peak():
    heights, edges = density(Profile.ema(0.99, steps=1_000_000))
    assert len(edges) <= 2001
    assert heights[-1] == heights.max() == pytest.approx(0.01)
    assert (heights * numpy.diff(edges)).sum() == pytest.approx(1)


def test_the_weights_from_before_training_are_a_pin():
    profile = profile_of(EMA(0.98, bias_correction=False))
    ax = plot_profile({"textbook": profile})
    assert pins(ax) == [(0, pytest.approx(0.95 * 0.98**60), True)]
    assert labels(ax)[0].endswith(f", initial {0.98**60:.1%}")
    ((heights, edges),) = densities(ax)
    assert (heights * numpy.diff(edges)).sum() == pytest.approx(1 - 0.98**60)


def test_so_are_those_from_which_an_average_starts():
    profile = profile_of(EMA(0.98, bias_correction=False, start=20))
    ax = plot_profile(profile)
    assert pins(ax) == [(20, pytest.approx(0.95 * 0.98**40), True)]
    ((heights, _),) = densities(ax)
    assert heights.max() == pytest.approx(0.02)


@pytest.mark.parametrize("start", [0, 10])
def test_a_negative_share_is_a_hollow_pin(start):
    profile = profile_of(BEMA(1, start=start))
    ax = plot_profile(profile)
    (share,) = profile.shares[profile.times == start]
    assert share < 0
    assert pins(ax) == [(start, pytest.approx(-0.95 * share), False)]
    assert labels(ax)[0].endswith(f"initial {share:.1%}")
    assert ax.get_ylim()[0] == 0


def test_what_stands_for_steps_or_cannot_be_seen_is_no_pin():
    averages = {
        "ema": EMA(0.9),
        "ema_7": EMA(0.9, every=7),
        "warm-up": EMA(0.9, warmup=True),
        "textbook": EMA(0.9, bias_correction=False),
        "power": PowerEMA(0.1),
        "power_7": PowerEMA(0.2, every=7),
        "swa": SWA(every_steps=20),
    }
    profiles = {
        name: profile_of(average, steps=90)
        for name, average in averages.items()
    }
    assert pins(plot_profile(profiles)) == []


def test_a_sample_that_is_the_only_one_is_a_pin():
    ax = plot_profile(Profile.mean([500], STEPS))
    assert pins(ax) == [(500, 0.95, True)]
    assert labels(ax)[0].endswith(" 0")  # its width
    assert ax.get_ylim() == pytest.approx((0, 1.05 / STEPS))


def test_a_pin_leaves_the_others_their_height():
    ema = Profile.ema(0.99, STEPS)
    alone = plot_profile(ema).get_ylim()
    both = plot_profile({"ema": ema, "raw": Profile.mean([STEPS], STEPS)})
    assert both.get_ylim() == pytest.approx(alone)
    assert alone == pytest.approx((0, 0.0105))


def test_mean_ages_are_marked_unless_they_are_ahead():
    ema = Profile.ema(0.99, STEPS)
    assert mean_ages(plot_profile(ema)) == [pytest.approx(1901)]
    ahead = profile_of(BEMA(1, bias_power=0.0))
    assert ahead.mean_age < 0
    ax = plot_profile(ahead)
    assert mean_ages(ax) == []
    assert ax.get_xlim()[1] < 62


def test_the_legend_names_each_with_its_numbers():
    profiles = {
        "EMA": Profile.ema(0.99, STEPS),
        "power function": Profile.power(0.1, 1_000_000),
    }
    assert labels(plot_profile(profiles)) == [
        r"EMA: mean age 99, $\sigma_\mathrm{rel}$ 0.0497",
        r"power function: mean age 112000, $\sigma_\mathrm{rel}$ 0.1",
    ]
    assert labels(plot_profile(profiles["EMA"])) == [
        r"mean age 99, $\sigma_\mathrm{rel}$ 0.0497"
    ]


def test_ten_profiles_look_different_and_have_space():
    profiles = {
        f"PowerEMA({width:.2f})": Profile.power(width, STEPS)
        for width in numpy.linspace(0.02, 0.28, 10)
    }
    ax = plot_profile(profiles)
    looks = {(p.get_edgecolor(), p.get_linestyle()) for p in ax.patches}
    assert len(looks) == 10
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    whole = ax.figure.bbox
    assert whole.y0 <= legend.y0 <= legend.y1 <= whole.y1
    assert whole.x0 <= legend.x0 <= legend.x1 <= whole.x1
    assert legend.y0 >= ax.bbox.y1
    assert ax.bbox.height > 0.4 * whole.height


def test_the_picture_is_drawn_on_the_axes_given():
    _, ax = pyplot.subplots()
    assert plot_profile(Profile.ema(0.9, 10), ax=ax) is ax
    assert ax.get_xlabel() == "optimizer step"
    assert ax.get_ylabel() == "share per step"
    new = plot_profile(Profile.ema(0.9, 10))
    assert new.figure is not ax.figure


def test_a_second_picture_on_the_same_axes_makes_space_for_itself():
    ax = plot_profile(Profile.ema(0.9, 10))
    plot_profile(Profile.ema(0.5, 100), ax=ax)
    assert ax.get_xlim()[1] == pytest.approx(102)
    assert ax.get_ylim() == pytest.approx((0, 0.525))


def test_steps_are_whole_numbers():
    for steps in (1, 2, 5):
        ax = plot_profile(Profile.ema(0.9, steps))
        ax.figure.draw_without_rendering()
        inside = [t for t in ax.get_xticks() if 0 <= t <= steps]
        assert inside == sorted({round(tick) for tick in inside})
        assert inside


@pytest.mark.parametrize(
    "profiles",
    [{}, [Profile.ema(0.9, 3)], {"a": [0.5, 0.5]}, EMA(0.9), None],
    ids=["none of many", "a list", "numbers", "an average", "nothing"],
)
def test_what_is_no_profile_is_refused(profiles):
    with pytest.raises(ValueError, match=r"`profiles` must be .* Received: "):
        plot_profile(profiles)
