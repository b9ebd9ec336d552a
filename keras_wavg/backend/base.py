"""What the averages of all backends have in common."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.backend.counting import Counters
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule


class BaseAverages(abc.ABC):
    """Averages of the same variables by several schedules. Abstract.

    One update moves all of them. Where only one is meant, it is the first.

    Args:
        schedules: Sequence of `Schedule`s.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self._schedules = tuple(schedules)

    @property
    @abc.abstractmethod
    def counters(self) -> Counters:
        """The counts, as integers. Waits for the device."""

    @abc.abstractmethod
    def bind(self, model: Any) -> None:
        """Find the variables, at the beginning of each `fit`."""

    @abc.abstractmethod
    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""

    @abc.abstractmethod
    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, where finite."""

    @abc.abstractmethod
    def read(self, index: int = 0) -> Any:
        """An average in the order and shapes of the variables, as copies."""

    @abc.abstractmethod
    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, on their devices or in host memory."""

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the first average and the counts be these, copied."""
        self._load(0, averages)
        self._load_counters(counters)

    def kept(self) -> Mapping[str, Any]:
        """The averages besides the first, by name."""
        names = averages_keep(len(self._schedules), 1)
        return {name: self.read(i) for i, name in enumerate(names, start=1)}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Let the averages besides the first be these, copied."""
        names = averages_keep(len(self._schedules), 1)
        for i, name in enumerate(names, start=1):
            self._load(i, kept[name])

    @abc.abstractmethod
    def _load(self, index: int, averages: Sequence[Any]) -> None:
        """Let an average be this one, copied."""

    @abc.abstractmethod
    def _load_counters(self, counters: Counters) -> None:
        """Let the counts be these."""


def averages_keep(count: int, steps: int) -> Sequence[str]:
    """The names of what so many averages keep besides the first one."""
    return [f"power_{i}" for i in range(1, count)] if steps else []
