"""What a callback averages, how, and when: its arguments, once checked."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras_wavg.arguments import Include
from keras_wavg.backend import averages_of
from keras_wavg.backend.base import averages_keep
from keras_wavg.profile import Profile
from keras_wavg.sampling import EverySteps, Sampling
from keras_wavg.schedules import Schedule


def nothing(steps: int) -> Sequence[str]:
    """No array besides the average is kept."""
    del steps
    return ()


@dataclass(frozen=True)
class Plan:
    """What a callback asks of its average, for any model.

    Args:
        name: String, by which the average is found again in a file.
        averages: Function from a list of variables to the object that averages
            them, see `keras_wavg.backend` and `keras_wavg.samples`.
        sampling: A `Sampling`.
        include: See `keras_wavg.arguments.Include`.
        starts_from_initial: Boolean, whether the average begins at the weights
            from before training.
        kept: Function from the count of steps or samples that an average covers
            to the names of the arrays that are kept besides it, for each
            weight.
        profile: Function from the times of the samples and that of now, in
            optimizer steps, to the `Profile` of the average.
        counts_samples: Boolean, whether the count beside the average is of
            samples, and not of optimizer steps.
        overwrite_every: Integer, the optimizer steps from one writing of the
            average into the trained weights to the next, or `None`.
    """

    name: str
    averages: Callable[[Sequence[Any]], Any]
    sampling: Sampling
    include: Include = None
    starts_from_initial: bool = False
    kept: Callable[[int], Sequence[str]] = nothing
    profile: Callable[[Sequence[float], int], Profile] = Profile.mean
    counts_samples: bool = True
    overwrite_every: int | None = None


def scheduled_plan(
    schedules: Sequence[Schedule],
    sampling: EverySteps,
    *,
    name: str,
    include: Include,
    device: str | None = None,
    overwrite_every: int | None = None,
) -> Plan:
    """The plan of an average on the device, updated in proportion to steps.

    Args:
        schedules: Sequence of `Schedule`s. The first is the one that is meant
            where there is one average.
        sampling: When it is updated.
        name: See `Plan`.
        include: See `Plan`.
        device: `None` or `"cpu"`, see `keras_wavg.backend`.
        overwrite_every: See `Plan`.

    Returns:
        A `Plan`.
    """
    return Plan(
        name=name,
        averages=functools.partial(
            averages_of,
            schedules=schedules,
            start=sampling.start,
            device=device,
        ),
        sampling=sampling,
        include=include,
        kept=functools.partial(averages_keep, len(schedules)),
        starts_from_initial=schedules[0].starts_from_initial,
        profile=functools.partial(
            Profile.of_schedule, schedules[0], start=sampling.start
        ),
        counts_samples=False,
        overwrite_every=overwrite_every,
    )
