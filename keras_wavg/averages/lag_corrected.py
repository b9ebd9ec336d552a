"""An exponential moving average with a correction of its lag (BEMA)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy

from keras_wavg.averages.base import Method
from keras_wavg.averages.host import (
    Arrays,
    HostAverage,
    moved_towards,
    numpy_copies,
)
from keras_wavg.profile import Profile
from keras_wavg.schedules import Number, Schedule


@dataclass(frozen=True)
class PowerDecay(Schedule):
    """A coefficient that decays as a power of time.

    Args:
        power: Non-negative float, the exponent.
        lag: Float of at least 1, added to the time, so that coefficients are
            in the range (0, 1].
        multiplier: Non-negative float that scales the time.
    """

    power: float
    lag: float
    multiplier: float
    starts_from_initial = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """`(lag + multiplier * steps) ** -power`, for any interval."""
        del interval, ops
        return (self.lag + self.multiplier * steps) ** -self.power


@final
@dataclass(frozen=True)
class LagCorrection(Method):
    """An exponential moving average and a correction of its lag.

    Args:
        ema: `PowerDecay`, the coefficient of a sample in the moving average.
        correction: `PowerDecay`, the coefficient of the difference between the
            current and the initial weights, which is added to the average.
        start: Integer, the optimizer step after which steps are counted.
    """

    ema: PowerDecay
    correction: PowerDecay
    start: int

    @property
    def starts_from_initial(self) -> bool:
        """Always: the correction needs the initial weights."""
        return True

    def accumulator(self, variables: Sequence[Any]) -> "LagCorrected":
        """Create an accumulator of both averages and the initial weights."""
        return LagCorrected(variables, self)

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of the initial weights and of the moving average."""
        del steps
        return ["initial", "ema"]

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """The profile of the moving average, plus the correction."""
        ema = Profile.from_schedule(self.ema, times, now, self.start)
        correction = self.correction.coefficient(times[-1] - self.start, 1)
        coefficients = ema.coefficients.copy()
        coefficients[-1] += correction
        coefficients[0] -= correction
        return replace(ema, coefficients=coefficients)


@final
class LagCorrected(HostAverage):
    """A moving average with its lag corrected, in host memory.

    Args:
        variables: Keras variables with a floating-point dtype.
        method: `LagCorrection`.
    """

    def __init__(self, variables: Sequence[Any], method: LagCorrection) -> None:
        super().__init__(variables)
        self._method = method
        self._initial: Arrays = []
        self._ema: Arrays = []

    def start(self, model: Any) -> None:
        """Set the averages and the initial weights to the current weights."""
        super().start(model)
        self._initial, self._ema = self.read(), self.read()

    def extra_arrays(self) -> Mapping[str, Arrays]:
        """The initial weights and the moving average."""
        return {"initial": self._initial, "ema": self._ema}

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the initial weights and the moving average, from copies."""
        self._initial = numpy_copies(arrays["initial"])
        self._ema = numpy_copies(arrays["ema"])

    def _add(self, model: Any, sample: Arrays) -> None:
        del model
        steps = self._counters.last - self._method.start
        coefficient = self._method.ema.coefficient(steps, steps)
        correction = self._method.correction.coefficient(steps, steps)
        self._ema = [
            moved_towards(ema, array, coefficient)
            for ema, array in zip(self._ema, sample, strict=True)
        ]
        # A corrected variance could be negative, and frozen weights do not lag.
        self._average = [
            ema + correction * _finite_difference(array, initial)
            if variable.trainable
            else ema
            for variable, ema, array, initial in zip(
                self._variables, self._ema, sample, self._initial, strict=True
            )
        ]


def _finite_difference(
    array: numpy.ndarray, initial: numpy.ndarray
) -> numpy.ndarray:
    difference = array - initial
    return numpy.where(numpy.isfinite(difference), difference, 0)
