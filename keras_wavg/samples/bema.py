"""An exponential moving average, and its correction for lag."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from keras_wavg.backend import attach_weights
from keras_wavg.samples.collection import (
    Arrays,
    Collection,
    moved_towards,
    owned,
)
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


class LagCorrected(Collection):
    """BEMA in host memory: the average is a moving one and its correction.

    Args:
        variables: Keras variables of floating type.
        moving: `Fading`, the share of a sample in the moving average.
        correcting: `Fading`, the share of the way that the weights have
            come, which is what the moving average is corrected by.
        start: Integer, the optimizer step at which time begins.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        moving: Fading,
        correcting: Fading,
        start: int,
    ) -> None:
        super().__init__(variables)
        self._moving = moving
        self._correcting = correcting
        self._start = start
        self._initial: Arrays = []
        self._ema: Arrays = []

    def begin(self, model: Any) -> None:
        """Let the averages, and where the way begins, be the weights of now."""
        attach_weights(model)
        self.load([v.value for v in self._variables], self.counters)
        self._initial, self._ema = self.read(), self.read()

    def kept(self) -> Mapping[str, Arrays]:
        """The weights at the start, and the moving average."""
        return {"initial": self._initial, "ema": self._ema}

    def keep(self, kept: Mapping[str, Arrays]) -> None:
        """Take them over."""
        self._initial = owned(kept["initial"])
        self._ema = owned(kept["ema"])

    def _take(self, model: Any, sample: Arrays) -> None:
        del model
        steps = self.counters.last - self._start
        moved = self._moving.coefficient(steps, steps)
        corrected = self._correcting.coefficient(steps, steps)
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


def lag_corrected_keeps(samples: int) -> Sequence[str]:
    """The names of what is kept besides the average, from the start on."""
    del samples
    return ["initial", "ema"]
