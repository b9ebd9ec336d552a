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
    in_order,
    numbered,
    numbered_names,
    owned,
)
from keras_wavg.backend import attach_weights
from keras_wavg.ensemble import weights_given_back
from keras_wavg.saveable import load_weights_alone, save_weights_alone


@final
@dataclass(frozen=True)
class Ensemble(Method):
    """The mean of all samples, which are the members of an ensemble.

    Args:
        folder: `pathlib.Path` of the members' files, or `None` to keep them in
            host memory.
    """

    folder: Path | None

    def accumulator(self, variables: Sequence[Any]) -> HostAverage:
        """Members in memory, or in files."""
        if self.folder is None:
            return Members(variables)
        return MemberFiles(variables, self.folder)

    def keeps(self, steps: int) -> Sequence[str]:
        """The members in memory."""
        return numbered_names("member", steps) if self.folder is None else []


@final
class Members(HostAverage):
    """The samples in host memory, and their mean.

    Args:
        variables: Keras variables of floating type.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        super().__init__(variables)
        self._members: list[Arrays] = []

    def kept(self) -> Mapping[str, Arrays]:
        """The members, the oldest first."""
        return numbered("member", self._members)

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Take the members over."""
        self._members = in_order("member", kept)

    def member(self, model: Any, index: int) -> tuple[list[Any], Arrays]:
        """The variables that make a member, and their values."""
        attach_weights(model)
        return self._variables, self._members[index]

    def _take(self, model: Any, sample: Arrays) -> None:
        del model
        self._members.append(sample)
        self._move_average(sample)


@final
class MemberFiles(HostAverage):
    """The samples in weights files of the whole model, and their mean.

    Args:
        variables: Keras variables of floating type.
        folder: `pathlib.Path`, where `member_0001.weights.h5` and so on go.
    """

    def __init__(self, variables: Sequence[Any], folder: Path) -> None:
        super().__init__(variables)
        self._folder = folder

    def member(self, model: Any, index: int) -> tuple[list[Any], Arrays]:
        """The variables that make a member, and their values."""
        with weights_given_back(model):
            load_weights_alone(model, self._file(index))
            values = owned([variable.value for variable in model.weights])
        return model.weights, values

    def _take(self, model: Any, sample: Arrays) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._file(self._counters.steps - 1)) as written:
            save_weights_alone(model, written)
        self._move_average(sample)

    def _file(self, index: int) -> Path:
        return self._folder / f"member_{index + 1:04}.weights.h5"
