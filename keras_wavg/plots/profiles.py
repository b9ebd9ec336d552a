"""The picture of what averages are made of."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
from matplotlib import markers, ticker

from keras_wavg.plots.style import (
    axes_for_curves,
    curve,
    legend_above,
    whole_numbers,
)
from keras_wavg.profile import Profile

_BINS = 1000
_LEAST_SHARE = 0.0005
_HIGHEST_PIN = 0.95


def plot_profile(
    profiles: Profile | Mapping[str, Profile], *, ax: Any = None
) -> Any:
    """Draw the share of each past step in one or several averages.

    A curve is a density: the share of a sample, divided by the steps that it
    stands for, so that averages sampled every step and every ten steps can be
    compared. The area under it is the share of those steps.

    The weights at which an average began stand for no step. Their share is a
    pin at their place, and a number in the legend. At 100 % a pin is nearly as
    high as the picture; it is hollow if the share is negative, as it can be in
    `BEMA`. A sample that is the only one is a pin, too.

    The triangle on the axis is as far from the end as the average is old: its
    mean age.

    Args:
        profiles: A `Profile`, as from the `profile()` of an averaging callback,
            or a dictionary of names and `Profile`s.
        ax: A matplotlib `Axes` to draw on, best in a figure made with
            `layout="compressed"`, as the legend is above them. Defaults to
            `None`, those of a new figure.

    Example:

    >>> from keras_wavg import Profile
    >>> ax = plot_profile(
    ...     {
    ...         "EMA": Profile.ema(0.99, steps=2000),
    ...         "power function": Profile.power(0.1, steps=2000),
    ...     }
    ... )
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('optimizer step', 'share per step')

    Returns:
        The `Axes`.

    Raises:
        ValueError: If `profiles` is neither.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3, for
        such profiles and the relative width
    """
    labelled = _labelled(profiles)
    ax = axes_for_curves(ax, len(labelled))
    for index, (label, profile) in enumerate(labelled.items()):
        _draw(ax, profile, label, curve(index))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(whole_numbers())
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.set(xlabel="optimizer step", ylabel="share per step")
    legend_above(ax)
    return ax


def _labelled(
    profiles: Profile | Mapping[str, Profile],
) -> Mapping[str, Profile]:
    if isinstance(profiles, Profile):
        return {_numbers(profiles): profiles}
    if not isinstance(profiles, Mapping) or not profiles:
        raise _not_profiles(profiles)
    if not all(isinstance(p, Profile) for p in profiles.values()):
        raise _not_profiles(profiles)
    return {f"{name}: {_numbers(p)}": p for name, p in profiles.items()}


def _not_profiles(received: Any) -> ValueError:
    return ValueError(
        "`profiles` must be a `Profile`, or a dictionary of names and "
        f"`Profile`s. Received: {received!r}. Call `profile()` of an average."
    )


def _numbers(profile: Profile) -> str:
    share = profile.initial_share
    return (
        f"mean age {_short(profile.mean_age)}, "
        rf"$\sigma_\mathrm{{rel}}$ {_short(profile.sigma_rel)}"
    ) + (f", initial {share:.1%}" if abs(share) >= _LEAST_SHARE else "")


def _short(number: float) -> str:
    """Three digits, and 12300 rather than 1.23e+04."""
    return numpy.format_float_positional(
        number, precision=3, fractional=False, trim="-"
    )


def _draw(ax: Any, profile: Profile, label: str, style: Any) -> None:
    _draw_density(ax, profile, label, style)
    share = _pinned_share(profile)
    if share:
        _draw_pin(ax, profile, share, style["color"])
    if profile.mean_age >= 0:  # else it is ahead of the latest step
        _draw_mean_age(ax, profile, style["color"])


def _draw_density(ax: Any, profile: Profile, label: str, style: Any) -> None:
    edges = _edges(profile.steps)
    shares = numpy.diff(_spread(profile).cumulative(edges))
    outline = ax.stairs(
        shares / numpy.diff(edges),
        edges,
        baseline=None,
        label=label,
        linewidth=1.2,
        **style,
    )
    outline.sticky_edges.y.append(0)
    # The plain mean's, for where all that there is is a pin.
    ax.update_datalim([(0, 1 / profile.steps)])


def _draw_pin(ax: Any, profile: Profile, share: float, color: str) -> None:
    ax.plot(
        [profile.times[0]] * 2,
        [0, _HIGHEST_PIN * abs(share)],
        transform=ax.get_xaxis_transform(),
        marker="o",
        markevery=[1],
        markersize=4.5,
        markerfacecolor=color if share > 0 else "white",
        color=color,
        linewidth=1.2,
        clip_on=False,
    )


def _draw_mean_age(ax: Any, profile: Profile, color: str) -> None:
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
    """Whole steps, dense near the latest one, where averages are steep."""
    evenly = numpy.linspace(0, steps, _BINS + 1)
    ages = numpy.geomspace(1, steps, _BINS)
    return numpy.unique(numpy.append(evenly, steps - ages).round())


def _spread(profile: Profile) -> Profile:
    """The profile without the sample that stands for no steps."""
    if not _begins_with_a_pin(profile):
        return profile
    return replace(profile, shares=numpy.append(0, profile.shares[1:]))


def _pinned_share(profile: Profile) -> float:
    """Of the sample that stands for no steps, if it is enough to be seen."""
    share = float(profile.shares[0])
    is_seen = abs(share) >= _LEAST_SHARE
    return share if is_seen and _begins_with_a_pin(profile) else 0.0


def _begins_with_a_pin(profile: Profile) -> bool:
    """Whether the first sample is what the average began at, or is alone."""
    return profile.begun_at_first or len(profile.times) == 1
