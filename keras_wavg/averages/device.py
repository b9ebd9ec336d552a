"""What the averages on the devices of all backends have in common."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.averages.base import Accumulator
from keras_wavg.averages.counting import Counters
from keras_wavg.backend import device_copies, host_copies
from keras_wavg.schedules import Schedule


class DeviceAverages(Accumulator):
    """Averages of the same variables by several schedules. Abstract.

    Args:
        schedules: Tuple of `Schedule`s, see `Scheduled`.
        device: `None` or `"cpu"`, see `Scheduled`.
    """

    def __init__(
        self, schedules: tuple[Schedule, ...], device: str | None
    ) -> None:
        self._schedules = schedules
        self._device = device

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the first average and the counts be these, copied."""
        self._load(0, averages)
        self._load_counters(counters)

    def kept(self) -> Mapping[str, Sequence[Any]]:
        """The averages besides the first, by name."""
        names = names_besides_the_first(len(self._schedules))
        return {name: self.read(i) for i, name in enumerate(names, start=1)}

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Let the averages besides the first be these, copied."""
        names = names_besides_the_first(len(self._schedules))
        for i, name in enumerate(names, start=1):
            self._load(i, kept[name])

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, on their devices or in host memory."""
        return (device_copies if self._device is None else host_copies)(
            variables
        )

    @abc.abstractmethod
    def _load(self, index: int, averages: Sequence[Any]) -> None:
        """Let an average be this one, copied."""

    @abc.abstractmethod
    def _load_counters(self, counters: Counters) -> None:
        """Let the counts be these."""


def names_besides_the_first(count: int) -> Sequence[str]:
    """By which a file has the averages after the first of so many."""
    return [f"power_{i}" for i in range(1, count)]
