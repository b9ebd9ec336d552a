"""When the weights are sampled: every so many optimizer steps, or epochs."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling(abc.ABC):
    """Every how many units of training a sample is due, and from when on.

    Args:
        every: Positive integer, the units from one sample to the next.
    """

    every: int
    start = 0
    """Optimizer steps that do not count."""
    head_start = 0
    """Units that count as passed at the start: the first sample comes early."""
    epochs_a_tick = 0
    """The epochs that `update()` stands for in a loop without `fit`."""

    @abc.abstractmethod
    def units(self, steps: int, epochs: int) -> int:
        """Which of the steps and epochs that have just ended is counted."""

    @abc.abstractmethod
    def counted(self, steps: int, epochs: int) -> int:
        """The units since the start, at a time; none or fewer before it."""

    @abc.abstractmethod
    def times(self, count: int, last: int) -> Sequence[float]:
        """When the samples were taken, in optimizer steps.

        Args:
            count: Positive integer, the samples so far.
            last: Integer, when the last of them was taken.

        Returns:
            Sequence of numbers, as if all intervals had been alike.
        """

    def pending(
        self, pending: int, *, ended: tuple[int, int], now: tuple[int, int]
    ) -> int:
        """The units that no sample has covered, a sample being due at `every`.

        Args:
            pending: Integer, what they were so far.
            ended: `(steps, epochs)` that have just ended.
            now: `(steps, epochs)` since training began.

        Returns:
            Integer.
        """
        most = self.counted(*now) + self.head_start
        return max(0, min(pending + self.units(*ended), most))


@dataclass(frozen=True)
class EverySteps(Sampling):
    """A sample every so many optimizer steps.

    Args:
        every: Positive integer.
        start: Integer, the optimizer step from which steps count.
        start_epoch: Integer, the epoch from which steps count.
        head_start: Integer, see `Sampling`.
    """

    start: int = 0
    start_epoch: int = 0
    head_start: int = 0

    def units(self, steps: int, epochs: int) -> int:
        """The steps."""
        del epochs
        return steps

    def counted(self, steps: int, epochs: int) -> int:
        """The steps since the start."""
        return steps - self.start if epochs >= self.start_epoch else 0

    def times(self, count: int, last: int) -> Sequence[float]:
        """So many steps before the last, and so on."""
        first = last - self.every * (count - 1)
        return range(first, last + 1, self.every)


@dataclass(frozen=True)
class EveryEpochs(Sampling):
    """A sample at the end of every so many epochs.

    Args:
        every: Positive integer.
        start_epoch: Integer, the first epoch that counts, from 0 on.
    """

    start_epoch: int = 0
    epochs_a_tick = 1

    def units(self, steps: int, epochs: int) -> int:
        """The epochs."""
        del steps
        return epochs

    def counted(self, steps: int, epochs: int) -> int:
        """The epochs since the start."""
        del steps
        return epochs - self.start_epoch

    def times(self, count: int, last: int) -> Sequence[float]:
        """At the ends of epochs that are all as long."""
        epochs = [self.start_epoch + self.every * (i + 1) for i in range(count)]
        return [last * epoch / epochs[-1] for epoch in epochs]
