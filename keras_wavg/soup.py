"""A greedy soup: checkpoints are averaged as long as the score gains."""

import contextlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_wavg.files.average import (
    Paths,
    archive_like,
    average_checkpoints,
    checked,
    execute,
    planned,
    refuse_output,
)
from keras_wavg.files.checkpoint import suffix_of
from keras_wavg.files.report import AverageReport, table


@dataclass(frozen=True)
class Trial:
    """A checkpoint, tried on its own and then in the soup.

    Args:
        path: `pathlib.Path` of the checkpoint.
        alone: Float, its own score.
        together: Float, the score of the soup with it.
        taken: Boolean, whether it went into the soup.
    """

    path: Path
    alone: float
    together: float
    taken: bool


@dataclass(frozen=True)
class SoupReport:
    """What `greedy_soup` did. Printed, it is a table.

    Args:
        trials: Sequence of `Trial`s, in the order in which they were tried.
        score: Float, of the soup.
        average: `AverageReport` of the output.
    """

    trials: Sequence[Trial]
    score: float
    average: AverageReport

    @property
    def members(self) -> list[Path]:
        """The checkpoints in the soup."""
        return [trial.path for trial in self.trials if trial.taken]

    def __str__(self) -> str:
        rows = [
            (
                str(trial.path),
                f"{trial.alone:.6g}",
                f"{trial.together:.6g}",
                "taken" if trial.taken else "left out",
            )
            for trial in self.trials
        ]
        header = ("checkpoint", "alone", "in the soup", "")
        return (
            f"{table(header, rows)}\n{self.average.output}: soup of "
            f"{len(self.members)} of {len(self.trials)} checkpoints, score "
            f"{self.score:.6g} (best single: {self.trials[0].alone:.6g})"
        )


def greedy_soup(
    paths: Paths,
    score: Callable[[Any], Any],
    output: str | os.PathLike[str],
    *,
    model: Any = None,
    bn_data: Any = None,
    mode: str = "max",
    overwrite: bool = False,
    verbose: int = 1,
) -> SoupReport:
    """Average those checkpoints that make the score of their average better.

    Each checkpoint is scored alone. Then, from the best one down, each is put
    into the soup, which is their equal-weight mean, and stays in it if the
    soup's score does not fall. What is written is what was scored, so its score
    is never worse than that of the best single one. Choose by data that are
    neither those of training nor those of the final test.

    Each candidate is averaged anew, by `average_checkpoints`, from files that
    the system keeps in memory as far as there is room: nothing is read from
    disk twice then.

    Args:
        paths: Sequence of checkpoints, see `average_checkpoints`.
        score: Function from the path of a checkpoint to a number. With `model`,
            from the model that holds the weights.
        output: The file to write, see `average_checkpoints`.
        model: A built Keras model to load the weights in, or `None`. In the end
            it holds the soup; after an error, what it held before. Its
            optimizer is left alone; averages of callbacks begin anew.
        bn_data: What `update_bn` takes, to measure the statistics of
            `BatchNormalization` for each candidate, which needs `model`.
            Defaults to `None`: they are averaged like weights.
        mode: `"max"` if a higher score is better, `"min"` if a lower one is.
            Defaults to `"max"`.
        overwrite: Boolean, whether an existing file may be replaced. Defaults
            to `False`.
        verbose: 1 to print each decision, or 0. Defaults to 1.

    Example:

    >>> import tempfile, keras, numpy
    >>> from keras_wavg import greedy_soup
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [f"{folder}/{k}.weights.h5" for k in range(3)]
    ...     for path, value in zip(paths, (1.0, 5.0, 9.0)):
    ...         model.set_weights([numpy.full((1, 1), value)])
    ...         model.save_weights(path)
    ...     report = greedy_soup(
    ...         paths,
    ...         lambda model: abs(model.get_weights()[0].item() - 6.5),
    ...         f"{folder}/soup.weights.h5",
    ...         model=model,
    ...         mode="min",
    ...         verbose=0,
    ...     )
    >>> [path.name for path in report.members], report.score
    (['1.weights.h5', '2.weights.h5'], 0.5)

    Returns:
        A `SoupReport`.

    Raises:
        ValueError: If an argument is not one of these, if `score` does not
            return a number, or whatever `average_checkpoints` refuses.
        FileExistsError: If there is a file and not `overwrite`.

    References:
        [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482), algorithm 1
    """
    given = checked(paths)
    if mode not in {"min", "max"}:
        raise ValueError(
            f"`mode` must be 'min' or 'max'. Received: mode={mode!r}"
        )
    if bn_data is not None and model is None:
        raise ValueError(
            "`bn_data` needs `model`, whose statistics are measured. Received: "
            "model=None"
        )
    target = Path(output)
    _refuse_early(given, target, overwrite=overwrite)
    tell = Console(soft_wrap=True, quiet=not verbose, markup=False).print
    # Beside the output, where there must be room for one more anyway.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        suffix = ".keras" if target.suffix == ".keras" else ".weights.h5"
        kept = Path(folder, f"kept{suffix}")
        tasting = _Tasting(kept, score, model, bn_data, mode)
        with _given_back(model):
            trials = _trials(tasting, given, tell)
        members = [trial.path for trial in trials if trial.taken]
        average = tasting.serve(members, target, overwrite=overwrite)
    if model is not None:
        _load(model, target)
    report = SoupReport(tuple(trials), tasting.best, average)
    tell(str(report))
    return report


class _Tasting:
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
            return _number(self._score(self._candidate(paths)))
        _load(self._model, self._candidate(paths))
        if self._measurement is not None:
            self._measurement.update(self._bn_data, verbose=0)
        return _number(self._score(self._model))

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

    def serve(
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
        if self._model is None and len(paths) == 1:
            return paths[0]
        path = self._path(paths)
        average_checkpoints(paths, path, overwrite=True)
        return path

    def _path(self, paths: Sequence[Path]) -> Path:
        name = f"candidate{suffix_of(paths[0], 'paths')}"
        return self._kept.with_name(name)


def _trials(
    tasting: _Tasting, paths: Sequence[Path], tell: Callable[[str], None]
) -> list[Trial]:
    alone = []
    for path in paths:
        alone.append(tasting.score([path]))
        tell(f"{path} alone: {alone[-1]:.6g}")
        if tasting.rank(alone[-1]) < tasting.rank(tasting.best):
            tasting.keep(alone[-1])
    if math.isnan(tasting.best):
        raise ValueError(
            "`score` must return a number for at least one checkpoint. "
            "Received: NaN for each"
        )
    first, *others = sorted(
        range(len(paths)), key=lambda i: tasting.rank(alone[i])
    )
    members = [paths[first]]
    trials = [Trial(paths[first], alone[first], alone[first], taken=True)]
    for i in others:
        together = tasting.score([*members, paths[i]])
        taken = tasting.rank(together) <= tasting.rank(tasting.best)
        tell(
            f"soup with {paths[i]}: {together:.6g}"
            + (", taken" if taken else "")
        )
        if taken:
            members.append(paths[i])
            tasting.keep(together)
        trials.append(Trial(paths[i], alone[i], together, taken))
    return trials


def _refuse_early(
    paths: Sequence[Path], output: Path, *, overwrite: bool
) -> None:
    # Before hours of scoring, and not after.
    refuse_output(output, overwrite=overwrite)
    others = [path for path in paths if path.suffix != ".keras"]
    if output.suffix == ".keras" and others:
        raise ValueError(
            "For a `.keras` file as `output`, all of `paths` must be `.keras` "
            f"files. Received: output='{output}' and {others[0]}"
        )
    with planned(paths) as plan:
        archive_like(plan, output)


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`score` must return a number. Received: {score!r}"
        ) from error


def _load(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # The files have no optimizer and no averages of callbacks with them.
        warnings.filterwarnings("ignore", "Skipping variable loading for opt")
        warnings.filterwarnings("ignore", "What was loaded has no average")
        model.load_weights(path)


# Without a model, neither Keras nor a backend is needed.


def _measurement(model: Any) -> Any:
    from keras_wavg.batchnorm import Measurement  # noqa: PLC0415

    return Measurement(model)


def _given_back(model: Any) -> contextlib.AbstractContextManager[None]:
    if model is None:
        return contextlib.nullcontext()
    from keras_wavg.ensemble import weights_given_back  # noqa: PLC0415

    return weights_given_back(model)
