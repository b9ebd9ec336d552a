"""Averages with a schedule of coefficients, on the devices of the weights."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from keras_wavg.averages.base import Accumulator, Method
from keras_wavg.averages.device import extra_average_names
from keras_wavg.backend import name_of_backend
from keras_wavg.profile import Profile
from keras_wavg.schedules import Schedule


@final
@dataclass(frozen=True)
class Scheduled(Method):
    """One average per schedule, in float32, or float64 for float64 weights.

    Args:
        schedules: Tuple of `Schedule`s, which all count the same unit.
        start: Integer, the optimizer step after which steps are counted.
            Defaults to 0.
        device: `"cpu"` to keep the averages in host memory, and also the raw
            weights while an average is swapped in, so that no accelerator
            memory is used between updates. Defaults to `None`, the devices of
            the weights.
    """

    schedules: tuple[Schedule, ...]
    start: int = 0
    device: str | None = None

    @property
    def starts_from_initial(self) -> bool:
        """Whether the average starts from the weights before training."""
        return self.schedules[0].starts_from_initial

    @property
    def counts_samples(self) -> bool:
        """Whether the counter of the average counts samples, not steps."""
        return self.schedules[0].counts_samples

    def accumulator(self, variables: Sequence[Any]) -> Accumulator:
        """Create an accumulator for the running backend.

        Args:
            variables: Keras variables with a floating-point dtype.

        Raises:
            NotImplementedError: If it is not JAX, TensorFlow or torch.
        """
        module: Any = importlib.import_module(
            f"keras_wavg.averages.{name_of_backend()}"
        )
        accumulator: Accumulator = module.Averages(
            variables, self.schedules, self.start, self.device
        )
        return accumulator

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of the averages after the first."""
        return extra_average_names(len(self.schedules)) if steps else []

    def profile(
        self, times: Sequence[float], now: int, index: int = 0
    ) -> Profile:
        """The coefficients of the samples in one of the averages."""
        return Profile.from_schedule(
            self.schedules[index], times, now, self.start
        )
