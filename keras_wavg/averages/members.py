"""All samples, as the members of an ensemble, and their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from keras_wavg.atomic import replacing
from keras_wavg.averages.base import Method
from keras_wavg.averages.host import (
    Arrays,
    HostAverage,
    numbered,
    numbered_names,
    numpy_copies,
    sorted_by_number,
)
from keras_wavg.backend import sync_weights
from keras_wavg.ensemble import weights_restored
from keras_wavg.saving import load_weights_alone, save_weights_alone


@final
@dataclass(frozen=True)
class Ensemble(Method):
    """The members of an ensemble, which are all samples, and their mean.

    Args:
        directory: `pathlib.Path` of the members' files, or `None` to keep the
            members in host memory.
    """

    directory: Path | None

    def accumulator(self, variables: Sequence[Any]) -> HostAverage:
        """Create an accumulator of members in memory or in files."""
        if self.directory is None:
            return Members(variables)
        return MemberFiles(variables, self.directory)

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of the members in memory."""
        return numbered_names("member", steps) if self.directory is None else []


@final
class Members(HostAverage):
    """All samples in host memory, and their mean.

    Args:
        variables: Keras variables with a floating-point dtype.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        super().__init__(variables)
        self._members: list[Arrays] = []

    def extra_arrays(self) -> Mapping[str, Arrays]:
        """The members, oldest first."""
        return numbered("member", self._members)

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the members, from copies."""
        self._members = sorted_by_number("member", arrays)

    def member(self, model: Any, index: int) -> tuple[list[Any], Arrays]:
        """The variables of a member and their values."""
        sync_weights(model)
        return self._variables, self._members[index]

    def _add(self, model: Any, sample: Arrays) -> None:
        del model
        self._members.append(sample)
        self._move_average(sample)


@final
class MemberFiles(HostAverage):
    """All samples as weights files of the whole model, and their mean.

    Args:
        variables: Keras variables with a floating-point dtype.
        directory: `pathlib.Path` of the files, `member_0001.weights.h5` etc.
    """

    def __init__(self, variables: Sequence[Any], directory: Path) -> None:
        super().__init__(variables)
        self._directory = directory

    def member(self, model: Any, index: int) -> tuple[list[Any], Arrays]:
        """The variables of a member and their values."""
        with weights_restored(model):
            load_weights_alone(model, self._file(index))
            values = numpy_copies([v.value for v in model.weights])
        return model.weights, values

    def _add(self, model: Any, sample: Arrays) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with replacing(self._file(self._counters.steps - 1)) as written:
            save_weights_alone(model, written)
        self._move_average(sample)

    def _file(self, index: int) -> Path:
        return self._directory / f"member_{index + 1:04}.weights.h5"
