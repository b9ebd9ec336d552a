"""Averages checkpoints into candidates for a soup, and scores them."""

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_wavg import arguments
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.checkpoint import suffix_of
from keras_wavg.files.execution import execute
from keras_wavg.files.open_plan import open_plan
from keras_wavg.files.orbax.steps import is_orbax

if TYPE_CHECKING:
    from keras_wavg.batchnorm import Measurement


class Candidates:
    """Scores averages of checkpoints, and remembers the best score.

    Args:
        best_path: `pathlib.Path` to save the best candidate to if its
            statistics are measured, in an empty directory.
        score: See `greedy_soup`.
        model: See `greedy_soup`.
        batch_norm_data: See `greedy_soup`.
        batch_norm_steps: See `greedy_soup`.
        is_higher_better: Boolean, whether a higher score is better.
    """

    def __init__(
        self,
        best_path: Path,
        score: Callable[[Any], Any],
        model: Any,
        batch_norm_data: Any,
        batch_norm_steps: int | None,
        *,
        is_higher_better: bool,
    ) -> None:
        self._best_path = best_path
        self._score = score
        self._model = model
        self._data = batch_norm_data
        self._steps = batch_norm_steps
        self._sign = -1 if is_higher_better else 1
        self._measurement = (
            None if batch_norm_data is None else _measurement(model)
        )
        self.best_score = math.nan

    def score(self, paths: Sequence[Path]) -> float:
        """Score the mean of checkpoints."""
        path = self._candidate(paths)
        if self._model is None:
            return arguments.score(self._score(path))
        load_weights(self._model, path)
        if self._measurement is not None:
            self._measurement.update(self._data, steps=self._steps, verbose=0)
        return arguments.score(self._score(self._model))

    def rank(self, score: float) -> float:
        """A number that is lower for a better score."""
        return math.inf if math.isnan(score) else self._sign * score

    def save_best(self, score: float) -> None:
        """Save the candidate that was scored last as the best one."""
        self.best_score = score
        if self._measurement is None:
            return
        if self._best_path.suffix == ".keras":
            self._model.save(self._best_path)
        else:
            self._model.save_weights(self._best_path)

    def write(
        self, members: Sequence[Path], output: Path, *, overwrite: bool
    ) -> AverageReport:
        """Write the best candidate, which is the mean of `members`."""
        if self._measurement is None:
            return _average(members, output, overwrite=overwrite)
        # The saved candidate has measured statistics, but no provenance.
        mean = _average(members, self._path_of(members), overwrite=True)
        with open_plan([self._best_path]) as plan:
            return execute(
                plan, output, overwrite=overwrite, sources=mean.sources
            )

    def _candidate(self, paths: Sequence[Path]) -> Path:
        is_directory = is_orbax(paths[0])
        if self._model is None and len(paths) == 1 and not is_directory:
            return paths[0]
        path = self._path_of(paths)
        if is_directory:
            # Keras would load the latest step, not the one written last.
            shutil.rmtree(path, ignore_errors=True)
        _average(paths, path, overwrite=True)
        return path

    def _path_of(self, paths: Sequence[Path]) -> Path:
        is_directory = is_orbax(paths[0])
        suffix = "" if is_directory else suffix_of(paths[0], "filepaths")
        return self._best_path.with_name(f"candidate{suffix}")


def load_weights(model: Any, path: Path) -> None:
    """Load a file that contains only weights."""
    with warnings.catch_warnings():
        # The file has neither an optimizer nor averages of callbacks.
        warnings.filterwarnings("ignore", "Skipping variable loading for opt")
        warnings.filterwarnings("ignore", "The average .* restarts: the file")
        model.load_weights(path)


def _average(
    paths: Sequence[Path], output: Path, *, overwrite: bool
) -> AverageReport:
    return average_checkpoints(paths, output, overwrite=overwrite, verbose=0)


def _measurement(model: Any) -> "Measurement":
    # Without a model, neither Keras nor a backend is needed.
    from keras_wavg.batchnorm import Measurement  # noqa: PLC0415

    return Measurement(model)
