"""An exponential moving average, and its correction for lag."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy

from keras_wavg.averages.base import Method
from keras_wavg.averages.host import (
    Arrays,
    HostAverage,
    moved_towards,
    owned,
)
from keras_wavg.profile import Profile
from keras_wavg.schedules import Number, Schedule


@dataclass(frozen=True)
class Fading(Schedule):
    """A coefficient that fades as a power of time.

    Args:
        power: Non-negative float, how fast.
        lag: Float of at least 1, the age that is put on top of the time: with
            it, coefficients are in (0, 1].
        multiplier: Non-negative float, what time is multiplied by.
    """

    power: float
    lag: float
    multiplier: float
    starts_from_initial = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """`(lag + multiplier * steps) ** -power`, whatever the interval."""
        del interval, ops
        return (self.lag + self.multiplier * steps) ** -self.power


@final
@dataclass(frozen=True)
class LagCorrection(Method):
    """A moving average and its correction for lag.

    Args:
        moving: `Fading`, the share of a sample in the moving average.
        correcting: `Fading`, the share of the way that the weights have
            come, which is what the moving average is corrected by.
        start: Integer, the optimizer step at which time begins.
    """

    moving: Fading
    correcting: Fading
    start: int

    @property
    def starts_from_initial(self) -> bool:
        """It does: the way that the weights have come begins there."""
        return True

    def accumulator(self, variables: Sequence[Any]) -> "LagCorrected":
        """The two averages and where they began."""
        return LagCorrected(variables, self)

    def keeps(self, steps: int) -> Sequence[str]:
        """What is kept besides the average, from the start on."""
        del steps
        return ["initial", "ema"]

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """That of the moving average, and what the correction adds."""
        ema = Profile.of_schedule(self.moving, times, now, self.start)
        corrected = self.correcting.coefficient(times[-1] - self.start, 1)
        shares = ema.shares.copy()
        shares[-1] += corrected
        shares[0] -= corrected
        return replace(ema, shares=shares)


@final
class LagCorrected(HostAverage):
    """BEMA in host memory: the average is a moving one and its correction.

    Args:
        variables: Keras variables of floating type.
        method: `LagCorrection`.
    """

    def __init__(self, variables: Sequence[Any], method: LagCorrection) -> None:
        super().__init__(variables)
        self._method = method
        self._initial: Arrays = []
        self._ema: Arrays = []

    def begin(self, model: Any) -> None:
        """Let the averages, and where the way begins, be the weights of now."""
        super().begin(model)
        self._initial, self._ema = self.read(), self.read()

    def kept(self) -> Mapping[str, Arrays]:
        """The weights at the start, and the moving average."""
        return {"initial": self._initial, "ema": self._ema}

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Take them over."""
        self._initial = owned(kept["initial"])
        self._ema = owned(kept["ema"])

    def _take(self, model: Any, sample: Arrays) -> None:
        del model
        steps = self._counters.last - self._method.start
        moved = self._method.moving.coefficient(steps, steps)
        corrected = self._method.correcting.coefficient(steps, steps)
        self._ema = [
            moved_towards(ema, array, moved)
            for ema, array in zip(self._ema, sample, strict=True)
        ]
        # A corrected variance could be negative, and what is frozen has no lag.
        self._average = [
            ema + corrected * _finite_lag(array, initial)
            if variable.trainable
            else ema
            for variable, ema, array, initial in zip(
                self._variables, self._ema, sample, self._initial, strict=True
            )
        ]


def _finite_lag(array: numpy.ndarray, initial: numpy.ndarray) -> numpy.ndarray:
    lag = array - initial
    return numpy.where(numpy.isfinite(lag), lag, 0)
