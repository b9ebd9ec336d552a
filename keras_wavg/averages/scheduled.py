"""Averages that a schedule moves, on the devices of the weights."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from keras_wavg.averages.base import Accumulator, Method
from keras_wavg.averages.device import names_besides_the_first
from keras_wavg.backend import name_of_backend
from keras_wavg.profile import Profile
from keras_wavg.schedules import Schedule


@final
@dataclass(frozen=True)
class Scheduled(Method):
    """An average for each schedule, in float32, float64 of float64 weights.

    Args:
        schedules: Tuple of `Schedule`s, which all count the same.
        start: Integer, the optimizer step from which samples count.
        device: `None`, and the averages live where their weights do, or
            `"cpu"`: they and, while an average is in the model, the raw weights
            live in host memory, and an accelerator holds nothing of ours
            between updates.
    """

    schedules: tuple[Schedule, ...]
    start: int = 0
    device: str | None = None

    @property
    def starts_from_initial(self) -> bool:
        """See `Schedule`."""
        return self.schedules[0].starts_from_initial

    @property
    def counts_samples(self) -> bool:
        """See `Schedule`."""
        return self.schedules[0].counts_samples

    def accumulator(self, variables: Sequence[Any]) -> Accumulator:
        """Averages of the running backend.

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

    def keeps(self, steps: int) -> Sequence[str]:
        """The averages besides the first."""
        return names_besides_the_first(len(self.schedules)) if steps else []

    def profile(
        self, times: Sequence[float], now: int, index: int = 0
    ) -> Profile:
        """What one of the averages is made of."""
        return Profile.of_schedule(
            self.schedules[index], times, now, self.start
        )
