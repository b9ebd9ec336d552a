"""What the averages that follow one schedule ask for."""

import functools

from keras_wavg.arguments import Include
from keras_wavg.backend import averages_of
from keras_wavg.plan import Plan
from keras_wavg.profile import Profile
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import Schedule


def scheduled_plan(
    schedule: Schedule,
    sampling: EverySteps,
    *,
    name: str,
    include: Include,
    device: str | None = None,
    overwrite_every: int | None = None,
) -> Plan:
    """The plan of an average on the device, updated in proportion to steps.

    Args:
        schedule: A `Schedule`.
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
            averages_of, schedule=schedule, start=sampling.start, device=device
        ),
        sampling=sampling,
        include=include,
        starts_from_initial=schedule.starts_from_initial,
        profile=functools.partial(
            Profile.of_schedule, schedule, start=sampling.start
        ),
        counts_samples=False,
        overwrite_every=overwrite_every,
    )
