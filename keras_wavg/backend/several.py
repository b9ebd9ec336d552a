"""Several averages of the same weights, updated one after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_wavg.backend import averages_of
from keras_wavg.backend.counting import Counters
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule


class Several:
    """Averages by several schedules: the first one, and others besides it.

    It has the verbs of `keras_wavg.backend`, but for `begin`: none of them
    begins at the weights from before training.

    Args:
        variables: Keras variables of floating type.
        schedules: Sequence of `Schedule`s.
        start: Integer, the optimizer step from which samples count.
        device: `None` or `"cpu"`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedules: Sequence[Schedule],
        start: int,
        device: str | None,
    ) -> None:
        self._all = [
            averages_of(variables, schedule, start, device)
            for schedule in schedules
        ]
        self._names = several_keep(len(schedules), 1)

    @property
    def counters(self) -> Counters:
        """The counts, the same for all."""
        counters: Counters = self._all[0].counters
        return counters

    def bind(self, model: Any) -> None:
        """Find the variables."""
        for averages in self._all:
            averages.bind(model)

    def update(self, model: Any, reading: Reading) -> None:
        """Move all averages towards the weights of now."""
        for averages in self._all:
            averages.update(model, reading)

    def read(self, index: int = 0) -> Any:
        """One of the averages, the first if none is named."""
        return self._all[index].read()

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, where a swap keeps them."""
        copies: list[Any] = self._all[0].copies(variables)
        return copies

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the first average and the counts be these."""
        self._all[0].load(averages, counters)

    def kept(self) -> Mapping[str, Any]:
        """The averages besides the first."""
        return {
            name: averages.read()
            for name, averages in zip(self._names, self._all[1:], strict=True)
        }

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Let the averages besides the first be these."""
        for name, averages in zip(self._names, self._all[1:], strict=True):
            averages.load(kept[name], self.counters)


def several_keep(count: int, steps: int) -> Sequence[str]:
    """The names of what so many averages keep besides the first one."""
    return [f"power_{i}" for i in range(1, count)] if steps else []
