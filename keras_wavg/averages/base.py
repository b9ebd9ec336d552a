"""What all accumulators do, and the settings that they are made from."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.averages.counting import Counters
from keras_wavg.clock import Reading
from keras_wavg.profile import Profile


class Accumulator(abc.ABC):
    """An average of variables, updated sample by sample. Abstract.

    Some hold several averages of the same variables, which one update moves.
    Where only one is meant, it is the first.
    """

    @property
    @abc.abstractmethod
    def counters(self) -> Counters:
        """The counts, as integers. Waits for the device."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no average, nor a beginning of one."""
        return False

    def bind(self, model: Any) -> None:
        """Find the variables, at the beginning of each `fit`."""
        del model

    @abc.abstractmethod
    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""

    @abc.abstractmethod
    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, where finite."""

    @abc.abstractmethod
    def read(self, index: int = 0) -> list[Any]:
        """An average in the order and shapes of the variables, as copies."""

    @abc.abstractmethod
    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the first average and the counts be these, copied."""

    def kept(self) -> Mapping[str, Sequence[Any]]:
        """The arrays besides the first average: by name, for each variable."""
        return {}

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Let the arrays besides the first average be these, copied."""
        del kept

    @abc.abstractmethod
    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, where this keeps its averages."""


class Method(abc.ABC):
    """How weights are averaged, whatever the model. Abstract."""

    @property
    def starts_from_initial(self) -> bool:
        """Whether the average begins at the weights from before training."""
        return False

    @property
    def counts_samples(self) -> bool:
        """Whether the count beside the average is of samples, not of steps."""
        return True

    @abc.abstractmethod
    def accumulator(self, variables: Sequence[Any]) -> Accumulator:
        """A new accumulator of some variables.

        Args:
            variables: Keras variables of floating type.
        """

    def keeps(self, steps: int) -> Sequence[str]:
        """The names of what `Accumulator.kept` gives.

        Args:
            steps: Integer, the steps or samples that the average covers.
        """
        del steps
        return ()

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """What the average is made of.

        Args:
            times: Increasing numbers, when samples were taken, in optimizer
                steps.
            now: Integer, the optimizer steps so far.
        """
        return Profile.mean(times, now)
