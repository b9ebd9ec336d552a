"""When a sample of the weights is due: every few optimizer steps or epochs."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from keras_wavg import arguments


@dataclass(frozen=True)
class Sampling(abc.ABC):
    """Takes a sample at a fixed interval. Abstract.

    Args:
        every: Positive integer, the interval, in optimizer steps or epochs.
    """

    every: int
    start_step = 0
    """The optimizer step from which steps count."""
    phase = 0
    """Units that count as passed at the start, for an early first sample."""
    epochs_per_update = 0
    """The epochs that a call of `update()` counts for without `fit`."""

    @abc.abstractmethod
    def units(self, steps: int, epochs: int) -> int:
        """The number of steps, or of epochs, that is counted."""

    @abc.abstractmethod
    def counted(self, steps: int, epochs: int) -> int:
        """The units since the start, negative or 0 before it."""

    @abc.abstractmethod
    def times(self, count: int, last: int) -> Sequence[float]:
        """The times of the samples, in optimizer steps.

        Args:
            count: Positive integer, the number of samples so far.
            last: Integer, the time of the last sample, in optimizer steps.

        Returns:
            Sequence of numbers, which assumes equal intervals.
        """

    def is_due(self, *, ended: tuple[int, int], now: tuple[int, int]) -> bool:
        """Return whether an interval ended, counted from the start.

        Args:
            ended: `(steps, epochs)` that have just ended.
            now: `(steps, epochs)` since training started.
        """
        counted = self.counted(*now)
        before = counted - self.units(*ended)
        return counted // self.every != before // self.every

    def pending(
        self, pending: int, *, ended: tuple[int, int], now: tuple[int, int]
    ) -> int:
        """The units since the last sample. A sample is due at `every`.

        Args:
            pending: Integer, their number so far.
            ended: `(steps, epochs)` that have just ended.
            now: `(steps, epochs)` since training started.

        Returns:
            Integer.
        """
        most = self.counted(*now) + self.phase
        return max(0, min(pending + self.units(*ended), most))


@dataclass(frozen=True)
class EverySteps(Sampling):
    """A sample every `every` optimizer steps.

    Args:
        every: Positive integer, in optimizer steps.
        start_step: Integer, the optimizer step from which steps count.
        start_epoch: Integer, the epoch from which steps count.
        phase: Integer, the steps that count as passed at the start.
    """

    start_step: int = 0
    start_epoch: int = 0
    phase: int = 0

    def units(self, steps: int, epochs: int) -> int:
        """The number of steps."""
        del epochs
        return steps

    def counted(self, steps: int, epochs: int) -> int:
        """The steps since the start."""
        return steps - self.start_step if epochs >= self.start_epoch else 0

    def times(self, count: int, last: int) -> Sequence[float]:
        """Steps at the same distance, up to the last."""
        first = last - self.every * (count - 1)
        return range(first, last + 1, self.every)


@dataclass(frozen=True)
class EveryEpochs(Sampling):
    """A sample at the end of every `every`-th epoch.

    Args:
        every: Positive integer, in epochs.
        start_epoch: Integer, the first epoch that counts, from 0.
    """

    start_epoch: int = 0
    epochs_per_update = 1

    def units(self, steps: int, epochs: int) -> int:
        """The number of epochs."""
        del steps
        return epochs

    def counted(self, steps: int, epochs: int) -> int:
        """The epochs since the start."""
        del steps
        return epochs - self.start_epoch

    def times(self, count: int, last: int) -> Sequence[float]:
        """The ends of epochs of equal length."""
        epochs = [self.start_epoch + self.every * (i + 1) for i in range(count)]
        return [last * epoch / epochs[-1] for epoch in epochs]


def every_epochs_or_steps(
    every_epochs: int,
    every_steps: int | None,
    *,
    start_epoch: int = 0,
    prefix: str = "",
) -> Sampling:
    """Choose between epochs, the default, and optimizer steps.

    Args:
        every_epochs: Positive integer, the epochs between samples.
        every_steps: Positive integer, the optimizer steps between samples,
            which replace the epochs, or `None`.
        start_epoch: Integer, the first epoch that counts, from 0.
        prefix: String, put before the names of the arguments in errors.

    Returns:
        A `Sampling`.

    Raises:
        ValueError: If an argument is out of its range, or if both are given.
    """
    names = f"{prefix}every_epochs", f"{prefix}every_steps"
    epochs = arguments.integer(names[0], every_epochs, at_least=1)
    steps = arguments.integer_or_none(names[1], every_steps, at_least=1)
    if steps is None:
        return EveryEpochs(epochs, start_epoch)
    if epochs != 1:
        raise ValueError(
            f"Only one of `{names[0]}` and `{names[1]}` can be given. "
            f"Received: {names[0]}={epochs}, {names[1]}={steps}"
        )
    return EverySteps(steps, start_epoch=start_epoch)
