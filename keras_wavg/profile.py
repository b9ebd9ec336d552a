"""The profile of an average: the coefficient of each past step."""

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
"""The attribute of a weights file that stores the profile of its weights."""

PARSING_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RecursionError,
)
"""Errors of reading JSON that has another structure than expected."""

_MAX_SAMPLES_IN_JSON = 4000
_MAX_STEPS = 2**63
# In a longer training, some samples of `ema` and `power` represent many steps.
_MAX_SAMPLES = 1_000_000

MAX_SIGMA_REL = 1 / math.sqrt(12)
"""The relative width of the plain mean of all steps."""
# Shorter than a step of any training, and without underflow.
_MIN_SIGMA_REL = 1e-9


@dataclass(frozen=True, eq=False)
class Profile:
    """The coefficient of each past step in an average.

    A sample of the weights represents the optimizer steps since the previous
    sample. Ages are numbers of optimizer steps before the latest one.

    Args:
        times: Array of increasing numbers, the optimizer steps after which the
            samples were taken.
        coefficients: Array of the same length, the coefficient of each sample.
            They sum to 1.
        steps: Positive integer, the number of optimizer steps so far.
        exponent: Non-negative float, gamma of a power-function average.
            Defaults to `None`, for another average.
        starts_from_initial: Boolean, whether the first sample is the weights
            from which the average started, which represent no step. Defaults
            to `False`.

    Example:

    >>> profile = Profile.ema(0.99, steps=1000)
    >>> round(profile.mean_age, 1), round(profile.half_life, 1)
    (99.0, 69.0)

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3, for
        the relative width
    """

    times: Any
    coefficients: Any
    steps: int
    exponent: float | None = None
    starts_from_initial: bool = False

    @classmethod
    def from_schedule(
        cls,
        schedule: Schedule,
        times: Sequence[float],
        steps: int,
        start_step: int = 0,
    ) -> Self:
        """Create the profile of an average that a schedule defines.

        Args:
            schedule: A `Schedule`.
            times: Sequence of increasing numbers, the optimizer steps after
                which samples were taken.
            steps: Positive integer, the number of optimizer steps so far.
            start_step: Non-negative integer, the number of optimizer steps
                before the average started. Defaults to `0`.

        Returns:
            A `Profile`.
        """
        sampled = numpy.asarray(times, "float64")
        counts = sampled - start_step
        if schedule.counts_samples:
            counts = numpy.arange(1.0, len(sampled) + 1)
        with numpy.errstate(divide="ignore"):  # log(0) if the decay is 0
            updates = schedule.coefficient(
                counts, numpy.diff(counts, prepend=0.0)
            )
        decays = numpy.cumprod((1 - updates)[::-1])[::-1]
        coefficients = updates * numpy.append(decays[1:], 1.0)
        if schedule.starts_from_initial:
            sampled = numpy.append(float(start_step), sampled)
            coefficients = numpy.append(decays[:1], coefficients)
        exponent = schedule.exponent if isinstance(schedule, Power) else None
        return cls(
            sampled,
            coefficients,
            steps,
            exponent,
            schedule.starts_from_initial,
        )

    @classmethod
    def ema(cls, decay: float, steps: int) -> Self:
        """Create the profile of a bias-corrected exponential moving average.

        Args:
            decay: Float in [0, 1), the decay per optimizer step.
            steps: Positive integer, the number of optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        schedule = BiasCorrected(ConstantDecay(arguments.decay(decay)))
        return cls.from_schedule(schedule, _sample_times(steps), steps)

    @classmethod
    def power(cls, sigma_rel: float, steps: int) -> Self:
        """Create the profile of a power-function average.

        Args:
            sigma_rel: Float in [1e-9, 1 / sqrt(12)], the relative width.
            steps: Positive integer, the number of optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        schedule = Power(exponent_from_sigma_rel(sigma_rel))
        return cls.from_schedule(schedule, _sample_times(steps), steps)

    @classmethod
    def mean(cls, times: Sequence[float], steps: int) -> Self:
        """Create the profile of the equal-weight mean of samples.

        Args:
            times: Sequence of increasing numbers, the optimizer steps after
                which samples were taken.
            steps: Positive integer, the number of optimizer steps so far.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If `times` is empty.
        """
        if not len(times):
            raise ValueError(
                "`times` must contain at least one sample. Received: times=[]"
            )
        coefficients = numpy.full(len(times), 1 / len(times))
        return cls(numpy.asarray(times, "float64"), coefficients, steps)

    @functools.cached_property
    def mean_age(self) -> float:
        """The mean age of the samples, in optimizer steps."""
        return float(self.coefficients @ (self.steps - self.times))

    @functools.cached_property
    def std_age(self) -> float:
        """The standard deviation of the age, in optimizer steps."""
        ages = self.steps - self.times
        variance = self.coefficients @ (ages - self.mean_age) ** 2
        # `BEMA` has a negative coefficient, so this may be negative too.
        return math.sqrt(max(0.0, variance))

    @property
    def sigma_rel(self) -> float:
        """The relative width: `std_age / steps`."""
        return self.std_age / self.steps

    @property
    def half_life(self) -> float:
        """The median age, in optimizer steps."""
        times, cumulative = self._cumulative_points()
        increasing = numpy.maximum.accumulate(cumulative)
        return float(self.steps - numpy.interp(0.5, increasing, times))

    @property
    def effective_sample_size(self) -> float:
        """The number of independent samples whose mean has the same noise."""
        return float(1 / (self.coefficients @ self.coefficients))

    @property
    def initial_coefficient(self) -> float:
        """The coefficient of the weights from which the average started."""
        if not self.starts_from_initial:
            return 0.0
        return float(self.coefficients[0])

    def cumulative(self, times: Any) -> Any:
        """Return the sum of the coefficients up to some times.

        Args:
            times: Array of times, in optimizer steps.

        Returns:
            Array of the same length. The coefficient of a sample is spread
            evenly over the steps that it represents. For a power-function
            average, the sum is the exact integral.
        """
        if self.exponent is not None:
            fraction = numpy.clip(times / self.times[-1], 0, 1)
            return fraction ** (self.exponent + 1)
        return numpy.interp(times, *self._cumulative_points())

    def _cumulative_points(self) -> tuple[Any, Any]:
        """Return times and the cumulative sums there, linear in between."""
        interval = self.times[1] - self.times[0] if len(self.times) > 1 else 1
        start = max(0, self.times[0] - interval)
        if self.starts_from_initial:
            start = self.times[0] - 1
        cumulative = numpy.append(0, self.coefficients).cumsum()
        return numpy.append(start, self.times), cumulative

    def to_json(self) -> str:
        """Return the profile as JSON.

        Of more than 4,000 samples, adjacent ones are combined.

        Returns:
            String, for `from_json`.
        """
        count = len(self.times)
        cumulative = self.coefficients.cumsum()
        ends = numpy.arange(count)
        if count > _MAX_SAMPLES_IN_JSON:
            half = _MAX_SAMPLES_IN_JSON // 2
            by_time = numpy.linspace(0, count - 1, half).astype(int)
            by_coefficient = numpy.searchsorted(
                cumulative, numpy.linspace(0, 1, half)
            )
            both = numpy.append(by_time, by_coefficient)
            ends = numpy.unique(numpy.clip(both, 0, count - 1))
        coefficients = numpy.diff(cumulative[ends], prepend=0.0)
        # These keys are a file format.
        return json.dumps(
            {
                "times": self.times[ends].tolist(),
                "shares": coefficients.tolist(),
                "steps": self.steps,
                "exponent": self.exponent,
                "begun_at_first": self.starts_from_initial,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Create a profile from JSON.

        Args:
            text: String, as returned by `to_json`.

        Returns:
            A `Profile`.

        Raises:
            ValueError: If `text` is not a profile.
        """
        try:
            fields = json.loads(text)
            profile = cls(
                numpy.array(fields["times"], "float64"),
                numpy.array(fields["shares"], "float64"),
                int(fields["steps"]),
                fields["exponent"],
                bool(fields["begun_at_first"]),
            )
            is_valid = profile._is_valid()
        except PARSING_ERRORS as error:
            raise ValueError(
                "A profile must be JSON from `Profile.to_json`. "
                f"Received: {text[:80]!r}"
            ) from error
        if not is_valid:
            raise ValueError(
                "A profile must have increasing times up to its steps, and "
                f"coefficients that sum to 1. Received: {text[:80]!r}"
            )
        return profile

    def _is_valid(self) -> bool:
        times = self.times
        return (
            times.shape == self.coefficients.shape == (times.size,)
            and times.size > 0
            and bool((numpy.diff(times) > 0).all())
            and 0 <= times[0] <= times[-1] <= self.steps
            and 1 <= self.steps <= _MAX_STEPS
            and math.isclose(self.coefficients.sum(), 1, rel_tol=1e-6)
            and (self.exponent is None or 0 <= self.exponent < math.inf)
        )

    def __str__(self) -> str:
        return (
            f"after {self.steps} steps: mean age {self.mean_age:.4g} +- "
            f"{self.std_age:.4g} steps, half-life {self.half_life:.4g} "
            f"steps, {self.effective_sample_size:.4g} effective samples, "
            f"sigma_rel {self.sigma_rel:.4g}, initial weights "
            f"{self.initial_coefficient:.2%}"
        )

    def __repr__(self) -> str:
        kind = ""
        if self.exponent is not None:
            kind = f"power function, exponent={self.exponent:.4g}, "
        elif numpy.ptp(self.coefficients) == 0:
            kind = "mean, "
        return (
            f"Profile({kind}samples={len(self.times)}, "
            f"last={self.times[-1]:.10g}, steps={self.steps}, "
            f"mean_age={self.mean_age:.4g}, std_age={self.std_age:.4g}, "
            f"sigma_rel={self.sigma_rel:.4g}, half_life={self.half_life:.4g}, "
            f"effective_samples={self.effective_sample_size:.4g}, "
            f"initial={self.initial_coefficient:.2%})"
        )


def sigma_rel_from_exponent(exponent: float) -> float:
    """Return the relative width of a power-function average.

    Args:
        exponent: Non-negative float, gamma in the paper.

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
    """Return the exponent of a power-function average of a relative width.

    Args:
        sigma_rel: Float in [1e-9, 1 / sqrt(12)]. The upper bound is the plain
            mean of all steps.

    Example:

    >>> round(exponent_from_sigma_rel(0.1), 4)
    6.9372

    Returns:
        Non-negative float, gamma in the paper.

    Raises:
        ValueError: If `sigma_rel` is out of its range.
    """
    if not arguments.is_number(sigma_rel) or not (
        _MIN_SIGMA_REL <= sigma_rel <= MAX_SIGMA_REL
    ):
        raise ValueError(
            "`sigma_rel` must be in the range [1e-9, 1 / sqrt(12)]; the upper "
            f"bound is the plain mean. Received: sigma_rel={sigma_rel!r}"
        )
    square = sigma_rel**-2
    roots = numpy.roots([1, 7, 16 - square, 12 - square])
    exponent = max(0.0, float(roots.real.max()))
    for _ in range(3):  # Newton's method: the roots lack the last digits.
        width = sigma_rel_from_exponent(exponent)
        slope = 1 / (exponent + 1) - 2 / (exponent + 2) - 1 / (exponent + 3)
        exponent -= 2 * math.log(width / sigma_rel) / slope
    return max(0.0, exponent)


def _sample_times(steps: int) -> Any:
    """Return all steps, or a selection of them that is dense at the end."""
    arguments.integer("steps", steps, at_least=1)
    if steps <= _MAX_SAMPLES:
        return numpy.arange(1.0, steps + 1)
    evenly = numpy.linspace(0, steps, _MAX_SAMPLES // 2 + 1)
    ages = numpy.geomspace(1, steps, _MAX_SAMPLES // 2)
    return numpy.unique(numpy.append(evenly, steps - ages).round())[1:]
