"""Candidates for a soup: made, scored, and the best one kept."""

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_wavg import arguments
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.checkpoint import suffix_of
from keras_wavg.files.execution import execute
from keras_wavg.files.orbax.steps import is_orbax
from keras_wavg.files.planning import planned


class Candidates:
    """Makes candidates and scores them, and keeps the best.

    Args:
        kept: `pathlib.Path` for the best candidate, in an empty folder.
        score: See `greedy_soup`.
        model: See `greedy_soup`.
        bn_data: See `greedy_soup`.
        mode: See `greedy_soup`.
    """

    def __init__(
        self,
        kept: Path,
        score: Callable[[Any], Any],
        model: Any,
        bn_data: Any,
        mode: str,
    ) -> None:
        self._kept = kept
        self._score = score
        self._model = model
        self._bn_data = bn_data
        self._sign = 1 if mode == "max" else -1
        self._measurement = None if bn_data is None else _measurement(model)
        self.best = math.nan

    def score(self, paths: Sequence[Path]) -> float:
        """The score of the mean of checkpoints."""
        if self._model is None:
            return arguments.score(self._score(self._candidate(paths)))
        load_weights(self._model, self._candidate(paths))
        if self._measurement is not None:
            self._measurement.update(self._bn_data, verbose=0)
        return arguments.score(self._score(self._model))

    def rank(self, score: float) -> float:
        """The lower, the better."""
        return math.inf if math.isnan(score) else -self._sign * score

    def keep(self, score: float) -> None:
        """Take the last candidate, of this score, for the best."""
        self.best = score
        if self._measurement is None:
            return
        if self._kept.suffix == ".keras":
            self._model.save(self._kept)
        else:
            self._model.save_weights(self._kept)

    def write(
        self, members: Sequence[Path], output: Path, *, overwrite: bool
    ) -> AverageReport:
        """Write the best, the mean of these checkpoints."""
        if self._measurement is None:
            return average_checkpoints(members, output, overwrite=overwrite)
        # The weights with the measured statistics, and what they are made of.
        mean = average_checkpoints(members, self._path(members), overwrite=True)
        with planned([self._kept]) as plan:
            return execute(
                plan, output, overwrite=overwrite, made_of=mean.sources
            )

    def _candidate(self, paths: Sequence[Path]) -> Path:
        is_folder = is_orbax(paths[0])
        if self._model is None and len(paths) == 1 and not is_folder:
            return paths[0]
        path = self._path(paths)
        if is_folder:
            # Another candidate is of another step, and Keras loads the latest.
            shutil.rmtree(path, ignore_errors=True)
        average_checkpoints(paths, path, overwrite=True)
        return path

    def _path(self, paths: Sequence[Path]) -> Path:
        is_folder = is_orbax(paths[0])
        suffix = "" if is_folder else suffix_of(paths[0], "paths")
        return self._kept.with_name(f"candidate{suffix}")


def load_weights(model: Any, path: Path) -> None:
    """Load a file that has weights only."""
    with warnings.catch_warnings():
        # The files have no optimizer and no averages of callbacks with them.
        warnings.filterwarnings("ignore", "Skipping variable loading for opt")
        warnings.filterwarnings("ignore", "What was loaded has no average")
        model.load_weights(path)


def _measurement(model: Any) -> Any:
    # Without a model, neither Keras nor a backend is needed.
    from keras_wavg.batchnorm import Measurement  # noqa: PLC0415

    return Measurement(model)
