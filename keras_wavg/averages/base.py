"""The interfaces of accumulators and of averaging methods."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.averages.update_rule import Counters
from keras_wavg.backend import assign, sync_weights
from keras_wavg.clock import UpdateTime
from keras_wavg.profile import Profile


class Accumulator(abc.ABC):
    """An average of variables that is updated sample by sample. Abstract.

    Some accumulators hold several averages of the same variables, all updated
    at once. Methods that handle a single average use the first.
    """

    @property
    @abc.abstractmethod
    def counters(self) -> Counters:
        """The counters, as integers. Waits for the device."""

    @property
    def is_empty(self) -> bool:
        """Whether the average has neither been started nor updated."""
        return False

    def locate_weights(self, model: Any) -> None:
        """Look up where the weights are stored, when `fit` starts."""
        del model

    @abc.abstractmethod
    def start(self, model: Any) -> None:
        """Set the averages to the current weights."""

    @abc.abstractmethod
    def update(self, model: Any, time: UpdateTime) -> None:
        """Move the averages towards the current weights, where finite."""

    @abc.abstractmethod
    def read(self, index: int = 0) -> list[Any]:
        """Copies of an average, in the order and shapes of the variables."""

    def copy_to(self, variables: Sequence[Any], model: Any) -> None:
        """Set other variables to the first average.

        Args:
            variables: Keras variables, in the order of the averaged ones.
            model: The trained model, which may have these variables.
        """
        # The trainer of JAX reads variables again only after this.
        sync_weights(model)
        assign(variables, self.read())

    @abc.abstractmethod
    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Set the first average and the counters, from copies."""

    def extra_arrays(self) -> Mapping[str, Sequence[Any]]:
        """The arrays besides the first average: by name, one per variable."""
        return {}

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the arrays besides the first average, from copies."""
        del arrays

    @abc.abstractmethod
    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, in the memory that holds the averages."""


class Method(abc.ABC):
    """A way to average weights, independent of the model. Abstract."""

    @property
    def starts_from_initial(self) -> bool:
        """Whether the average starts from the weights before training."""
        return False

    @property
    def counts_samples(self) -> bool:
        """Whether the counter of the average counts samples, not steps."""
        return True

    @abc.abstractmethod
    def accumulator(self, variables: Sequence[Any]) -> Accumulator:
        """Create an accumulator.

        Args:
            variables: Keras variables with a floating-point dtype.
        """

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of `Accumulator.extra_arrays`.

        Args:
            steps: Integer, the number of steps or samples in the average.
        """
        del steps
        return ()

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """The coefficients of the samples in the average.

        Args:
            times: Increasing numbers, the times of the samples in optimizer
                steps.
            now: Integer, the current time in optimizer steps.
        """
        return Profile.mean(times, now)
