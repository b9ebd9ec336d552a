"""What an average is made of: the share of each past step in it."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy

from keras_wavg import arguments
from keras_wavg.schedules import (
    BiasCorrected,
    ConstantDecay,
    Power,
    Schedule,
)

ATTRIBUTE = "keras_wavg_profile"
"""Of the root of a weights file: the profile of the weights in it, as text."""

_MOST_IN_TEXT = 4000
_MOST_STEPS = 2**63
# Of a profile of all steps. Beyond that some of them stand for several.
_MOST_SAMPLES = 1_000_000

WIDEST = 1 / math.sqrt(12)
"""The relative width of the plain mean, the widest of all here."""
# Less than a step of any training, and far from the range of floats.
_NARROWEST = 1e-9


@dataclass(frozen=True, eq=False)
class Profile:
    """The share of each past step in an average.

    A sample of the weights stands for the steps since the sample before it, as
    it does in the average.

    Args:
        times: Array of increasing numbers: the optimizer steps after which a
            sample was taken.
        shares: Array as long, what each has in the average. They sum to one.
        steps: Integer, the optimizer steps so far.
        exponent: Float, gamma of a power-function average, else `None`.
        begun_at_first: Boolean, whether the first sample is the weights at
            which the average began, which stand for no step.

    Example:

    >>> profile = Profile.ema(0.99, steps=1000)
    >>> round(profile.mean_age, 1), round(profile.half_life, 1)
    (99.0, 69.0)

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3, for
        the relative width
    """

    times: Any
    shares: Any
    steps: int
    exponent: float | None = None
    begun_at_first: bool = False

    @classmethod
    def of_schedule(
        cls,
        schedule: Schedule,
        times: Sequence[float],
        steps: int,
        start: int = 0,
    ) -> Self:
        """The profile of an average that took samples at some times.

        Args:
            schedule: A `Schedule`.
            times: Increasing numbers, in optimizer steps.
            steps: Integer, the optimizer steps so far.
            start: Integer, the steps that do not count.

        Returns:
            A `Profile`.
        """
        moments = numpy.asarray(times, "float64")
        count = moments - start
        if schedule.counts_samples:
            count = numpy.arange(1.0, len(moments) + 1)
        with numpy.errstate(divide="ignore"):  # a logarithm of nothing kept
            coefficients = schedule.coefficient(
                count, numpy.diff(count, prepend=0.0)
            )
        kept = numpy.cumprod((1 - coefficients)[::-1])[::-1]
        shares = coefficients * numpy.append(kept[1:], 1.0)
        if schedule.starts_from_initial:
            moments = numpy.append(float(start), moments)
            shares = numpy.append(kept[:1], shares)
        exponent = schedule.exponent if isinstance(schedule, Power) else None
        begun = schedule.starts_from_initial
        return cls(moments, shares, steps, exponent, begun)

    @classmethod
    def ema(cls, decay: float, steps: int) -> Self:
        """The profile of an exponential moving average, corrected for bias.

        Args:
            decay: Float in [0, 1), per optimizer step.
            steps: Integer, the optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        schedule = BiasCorrected(ConstantDecay(arguments.decay(decay)))
        return cls.of_schedule(schedule, _all(steps), steps)

    @classmethod
    def power(cls, sigma_rel: float, steps: int) -> Self:
        """The profile of a power-function average.

        Args:
            sigma_rel: Float in [1e-9, 1 / sqrt(12)], its relative width.
            steps: Integer, the optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        schedule = Power(exponent_from_sigma_rel(sigma_rel))
        return cls.of_schedule(schedule, _all(steps), steps)

    @classmethod
    def mean(cls, times: Sequence[float], steps: int) -> Self:
        """The profile of the mean of some samples; of one, of the weights.

        Args:
            times: Increasing numbers, when the samples were taken, in steps.
            steps: Integer, the optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If there is no sample.
        """
        if not len(times):
            raise ValueError(
                "`times` must have at least one sample. Received: none"
            )
        shares = numpy.full(len(times), 1 / len(times))
        return cls(numpy.asarray(times, "float64"), shares, steps)

    @functools.cached_property
    def mean_age(self) -> float:
        """How many steps ago the weights in it were, on the average."""
        return float(self.shares @ (self.steps - self.times))

    @functools.cached_property
    def deviation(self) -> float:
        """The standard deviation of that age, in steps."""
        ages = self.steps - self.times
        variance = self.shares @ (ages - self.mean_age) ** 2
        # The shares of `BEMA` are not all positive, and so this may not be.
        return math.sqrt(max(0.0, variance))

    @property
    def sigma_rel(self) -> float:
        """The standard deviation as a share of all steps: the width."""
        return self.deviation / self.steps

    @property
    def half_life(self) -> float:
        """Half of the average is of steps no longer ago than this."""
        knots, reached = self._knots()
        older = numpy.maximum.accumulate(reached)
        return float(self.steps - numpy.interp(0.5, older, knots))

    @property
    def effective_sample_size(self) -> float:
        """The number of independent samples whose mean has the same noise."""
        return float(1 / (self.shares @ self.shares))

    @property
    def initial_share(self) -> float:
        """The share of the weights at which the average began."""
        return float(self.shares[0]) if self.begun_at_first else 0.0

    def cumulative(self, times: Any) -> Any:
        """The share of all steps up to some times.

        Args:
            times: Array of times, in optimizer steps.

        Returns:
            Array as long. What a sample stands for is spread evenly over the
            steps since the one before it; for a power-function average it is
            the exact integral.
        """
        if self.exponent is not None:
            reached = numpy.clip(times / self.times[-1], 0, 1)
            return reached ** (self.exponent + 1)
        return numpy.interp(times, *self._knots())

    def _knots(self) -> tuple[Any, Any]:
        """Times, and the share up to each of them; even in between."""
        interval = self.times[1] - self.times[0] if len(self.times) > 1 else 1
        before = max(0, self.times[0] - interval)
        if self.begun_at_first:
            before = self.times[0] - 1
        reached = numpy.append(0, self.shares).cumsum()
        return numpy.append(before, self.times), reached

    def to_json(self) -> str:
        """The profile as a short text. Many samples are put together.

        Returns:
            String, for `from_json`.
        """
        count = len(self.times)
        ends = numpy.arange(count)
        if count > _MOST_IN_TEXT:
            evenly = numpy.linspace(0, count - 1, _MOST_IN_TEXT // 2)
            by_share = numpy.searchsorted(
                self.shares.cumsum(), numpy.linspace(0, 1, _MOST_IN_TEXT // 2)
            )
            both = numpy.append(evenly.astype(int), by_share)
            ends = numpy.unique(numpy.clip(both, 0, count - 1))
        shares = numpy.diff(self.shares.cumsum()[ends], prepend=0.0)
        return json.dumps(
            {
                "times": self.times[ends].tolist(),
                "shares": shares.tolist(),
                "steps": self.steps,
                "exponent": self.exponent,
                "begun_at_first": self.begun_at_first,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave.

        Args:
            text: String.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If it is not that.
        """
        try:
            found = json.loads(text)
            profile = cls(
                numpy.array(found["times"], "float64"),
                numpy.array(found["shares"], "float64"),
                int(found["steps"]),
                found["exponent"],
                bool(found["begun_at_first"]),
            )
            is_sound = profile._is_sound()
        except (
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"A profile must be as it was saved. Received: {text[:80]!r}"
            ) from error
        if not is_sound:
            raise ValueError(
                "A profile must have increasing times up to its steps, and "
                f"shares that sum to one. Received: {text[:80]!r}"
            )
        return profile

    def _is_sound(self) -> bool:
        times = self.times
        return (
            times.shape == self.shares.shape == (times.size,)
            and times.size > 0
            and bool((numpy.diff(times) > 0).all())
            and 0 <= times[0] <= times[-1] <= self.steps
            and 1 <= self.steps <= _MOST_STEPS
            and math.isclose(self.shares.sum(), 1, rel_tol=1e-6)
            and (self.exponent is None or 0 <= self.exponent < math.inf)
        )

    def __str__(self) -> str:
        return (
            f"after {self.steps} steps: mean age {self.mean_age:.4g} +- "
            f"{self.deviation:.4g} steps, half-life {self.half_life:.4g} "
            f"steps, {self.effective_sample_size:.4g} effective samples, "
            f"sigma_rel {self.sigma_rel:.4g}, initial weights "
            f"{self.initial_share:.2%}"
        )


def sigma_rel_from_exponent(exponent: float) -> float:
    """The relative width of a power-function average.

    Args:
        exponent: Float, 0 or more; gamma in the paper.

    Example:

    >>> round(sigma_rel_from_exponent(6.94), 4)
    0.1

    Returns:
        `(g + 1)**(1/2) / ((g + 2) * (g + 3)**(1/2))`, a float.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), equation 126
    """
    g = exponent
    return math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3))


def exponent_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent of the power-function average of a relative width.

    Args:
        sigma_rel: Float in [1e-9, 1 / sqrt(12)]: from the latest weights to
            the plain mean of all.

    Example:

    >>> round(exponent_from_sigma_rel(0.1), 4)
    6.9372

    Returns:
        Float, 0 or more.

    Raises:
        ValueError: If there is no such average.
    """
    if not arguments.is_number(sigma_rel) or not (
        _NARROWEST <= sigma_rel <= WIDEST
    ):
        raise ValueError(
            "`sigma_rel` must be in the range [1e-9, 1 / sqrt(12)], whose "
            f"end is the plain mean. Received: sigma_rel={sigma_rel!r}"
        )
    square = sigma_rel**-2
    roots = numpy.roots([1, 7, 16 - square, 12 - square])
    exponent = max(0.0, float(roots.real.max()))
    for _ in range(3):  # Newton's steps, to the last digits
        width = sigma_rel_from_exponent(exponent)
        slope = 1 / (exponent + 1) - 2 / (exponent + 2) - 1 / (exponent + 3)
        exponent -= 2 * math.log(width / sigma_rel) / slope
    return max(0.0, exponent)


def _all(steps: int) -> Any:
    """The steps, or if there are too many the latest ones and some others."""
    arguments.integer("steps", steps, at_least=1)
    if steps <= _MOST_SAMPLES:
        return numpy.arange(1.0, steps + 1)
    evenly = numpy.linspace(0, steps, _MOST_SAMPLES // 2 + 1)
    ages = numpy.geomspace(1, steps, _MOST_SAMPLES // 2)
    return numpy.unique(numpy.append(evenly, steps - ages).round())[1:]
