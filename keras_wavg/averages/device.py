"""Averages on the devices of the weights: the part common to all backends."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.averages.base import Accumulator
from keras_wavg.averages.update_rule import Counters
from keras_wavg.backend import device_copies, host_copies
from keras_wavg.schedules import Schedule


class DeviceAverages(Accumulator):
    """Averages of the same variables with several schedules. Abstract.

    Args:
        variables: Keras variables with a floating-point dtype.
        schedules: Tuple of `Schedule`s, see `Scheduled`.
        start: Integer, the optimizer step after which steps are counted.
        device: `None` or `"cpu"`, see `Scheduled`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedules: tuple[Schedule, ...],
        start: int,
        device: str | None,
    ) -> None:
        self._variables = list(variables)
        self._schedules = schedules
        self._device = device
        self._allocate(start)

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Set the first average and the counters, from copies."""
        self._load(0, averages)
        self._load_counters(counters)

    def extra_arrays(self) -> Mapping[str, Sequence[Any]]:
        """The averages after the first, by name."""
        names = extra_average_names(len(self._schedules))
        return {name: self.read(i) for i, name in enumerate(names, start=1)}

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the averages after the first, from copies."""
        names = extra_average_names(len(self._schedules))
        for i, name in enumerate(names, start=1):
            self._load(i, arrays[name])

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, on their devices or in host memory."""
        return (device_copies if self._device is None else host_copies)(
            variables
        )

    @abc.abstractmethod
    def _allocate(self, start: int) -> None:
        """Create the averages and the counters `(start, 0)`."""

    @abc.abstractmethod
    def _load(self, index: int, averages: Sequence[Any]) -> None:
        """Set one average, from copies."""

    @abc.abstractmethod
    def _load_counters(self, counters: Counters) -> None:
        """Set the counters."""


def extra_average_names(count: int) -> Sequence[str]:
    """The names, in a saved model, of all averages but the first."""
    return [f"power_{i}" for i in range(1, count)]
