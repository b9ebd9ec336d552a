"""The plot of the coefficients of past steps in averages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
from matplotlib import markers, ticker
from matplotlib.axes import Axes

from keras_wavg.plots.style import (
    axes_for_curves,
    curve_style,
    integer_locator,
    legend_above,
)
from keras_wavg.profile import Profile

_BINS = 1000
_MIN_STEM_COEFFICIENT = 0.0005
_MAX_STEM_HEIGHT = 0.95


def plot_profile(
    profiles: Profile | Mapping[str, Profile], *, ax: Axes | None = None
) -> Axes:
    """Draw the coefficient of each past step in one or several averages.

    A curve is a density: the coefficient of a sample divided by the number of
    steps that it represents. So you can compare averages that are sampled every
    step and every ten steps. The area under a curve is the sum of the
    coefficients of those steps.

    The weights from which an average started represent no step. They are drawn
    as a stem at the step at which it started, and their coefficient is in the
    legend. The stem is as high as the axes for a coefficient of 1, and its
    marker is hollow if the coefficient is negative, as in `BEMA`. The only
    sample of an average is a stem too.

    A triangle on the x axis marks the mean age: its distance from the latest
    step. The legend has the figures, with the symbols of triangle and stem.

    Args:
        profiles: A `Profile`, as returned by `profile()` of an averaging
            callback, or a dictionary of names and `Profile`s.
        ax: A matplotlib `Axes` to draw on, preferably of a figure created with
            `layout="compressed"`, because the legend is above the axes.
            Defaults to `None`, for a new figure.

    Example:

    >>> from keras_wavg import Profile
    >>> ax = plot_profile(
    ...     {
    ...         "EMA": Profile.ema(0.99, steps=2000),
    ...         "power function": Profile.power(0.1, steps=2000),
    ...     }
    ... )
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('optimizer step', 'coefficient per step')

    Returns:
        The `Axes`.

    Raises:
        ValueError: If `profiles` is not a `Profile` or a dictionary of them.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3, for
        such profiles and for the relative width
    """
    labeled = _labeled(profiles)
    ax = axes_for_curves(ax, len(labeled), characters=max(map(len, labeled)))
    for index, (label, profile) in enumerate(labeled.items()):
        _draw(ax, profile, label, curve_style(index))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(integer_locator())
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.set(xlabel="optimizer step", ylabel="coefficient per step")
    legend_above(ax)
    return ax


def _labeled(
    profiles: Profile | Mapping[str, Profile],
) -> Mapping[str, Profile]:
    if isinstance(profiles, Profile):
        return {_figures(profiles): profiles}
    if not isinstance(profiles, Mapping) or not profiles:
        raise _not_profiles(profiles)
    if not all(isinstance(p, Profile) for p in profiles.values()):
        raise _not_profiles(profiles)
    return {f"{name}: {_figures(p)}": p for name, p in profiles.items()}


def _not_profiles(received: Any) -> ValueError:
    return ValueError(
        "`profiles` must be a `Profile` or a dictionary of names and "
        f"`Profile`s. Received: profiles={received!r}. Call `profile()` of an "
        "averaging callback to get one."
    )


def _figures(profile: Profile) -> str:
    initial = profile.initial_coefficient
    triangle = "" if profile.mean_age < 0 else "▲ "
    figures = (
        f"{triangle}mean age {_short(profile.mean_age)}, "
        rf"$\sigma_\mathrm{{rel}}$ {_short(profile.sigma_rel)}"
    )
    if abs(initial) < _MIN_STEM_COEFFICIENT:
        return figures
    marker = "●" if initial > 0 else "○"
    return f"{figures}, {marker} initial weights {initial:.1%}"


def _short(number: float) -> str:
    """Return three digits, without an exponent: 12300 for 1.23e+04."""
    return numpy.format_float_positional(
        number, precision=3, fractional=False, trim="-"
    )


def _draw(ax: Axes, profile: Profile, label: str, style: Any) -> None:
    _draw_density(ax, profile, label, style)
    coefficient = _stem_coefficient(profile)
    if coefficient:
        _draw_stem(ax, profile, coefficient, style["color"])
    if profile.mean_age >= 0:  # Negative if `BEMA` extrapolates.
        _draw_mean_age(ax, profile, style["color"])


def _draw_density(ax: Axes, profile: Profile, label: str, style: Any) -> None:
    edges = _edges(profile.steps)
    masses = numpy.diff(_without_stem(profile).cumulative(edges))
    outline = ax.stairs(
        masses / numpy.diff(edges),
        edges,
        baseline=None,
        label=label,
        linewidth=1.2,
        **style,
    )
    outline.sticky_edges.y.append(0)
    # If there is only a stem, show the height of the plain mean.
    ax.update_datalim([(0, 1 / profile.steps)])


def _draw_stem(
    ax: Axes, profile: Profile, coefficient: float, color: str
) -> None:
    ax.plot(
        [profile.times[0]] * 2,
        [0, _MAX_STEM_HEIGHT * abs(coefficient)],
        transform=ax.get_xaxis_transform(),
        marker="o",
        markevery=[1],
        markersize=4.5,
        markerfacecolor=color if coefficient > 0 else "white",
        color=color,
        linewidth=1.2,
        clip_on=False,
    )


def _draw_mean_age(ax: Axes, profile: Profile, color: str) -> None:
    ax.plot(
        profile.steps - profile.mean_age,
        0,
        marker=markers.CARETUPBASE,
        markersize=6,
        markeredgewidth=0,
        color=color,
        clip_on=False,
    )


def _edges(steps: int) -> Any:
    """Return bin edges in steps, dense at the end, where densities are steep.

    Evenly spaced bins alone would flatten the peak of a short average.
    """
    evenly = numpy.linspace(0, steps, _BINS + 1)
    ages = numpy.geomspace(1, steps, _BINS)
    return numpy.unique(numpy.append(evenly, steps - ages).round())


def _without_stem(profile: Profile) -> Profile:
    if not _has_stem(profile):
        return profile
    coefficients = numpy.append(0, profile.coefficients[1:])
    return replace(profile, coefficients=coefficients)


def _stem_coefficient(profile: Profile) -> float:
    """Return the coefficient that a stem shows, or 0 if there is none."""
    coefficient = float(profile.coefficients[0])
    is_visible = abs(coefficient) >= _MIN_STEM_COEFFICIENT
    return coefficient if is_visible and _has_stem(profile) else 0.0


def _has_stem(profile: Profile) -> bool:
    """Return whether the first sample represents no steps, or is alone."""
    return profile.starts_from_initial or len(profile.times) == 1
