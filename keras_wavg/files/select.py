"""Selects checkpoints of a directory by epoch or by a metric."""

import math
import os
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from keras_wavg import arguments
from keras_wavg.files.checkpoint import SUFFIXES
from keras_wavg.files.checkpoint_opener import checkpoints_in
from keras_wavg.files.metric_log import read_metric
from keras_wavg.files.orbax.orbax_checkpoint import metrics_of_steps
from keras_wavg.files.orbax.steps import steps_in
from keras_wavg.files.remote import as_path, network_errors_as_os_errors
from keras_wavg.files.text_table import table

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
# `{epoch:02d}-{val_loss:.3f}` or `{epoch:02d}`, at the end of a name. A score
# has a decimal point or an exponent, or else `2024-05` would have one.
_NAME = re.compile(
    rf"(?P<epoch>\d+)(?:-(?P<score>(?=\D*\d*[.eEni]){_NUMBER}))?$"
)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a directory.

    Args:
        path: `pathlib.Path` of the checkpoint.
        epoch: Integer, the epoch in its name, or the Orbax step.
        score: Float, the metric at the end of that epoch, or `None`.
    """

    path: Path
    epoch: int
    score: float | None


@dataclass(frozen=True)
class Selection(Sequence[Path]):
    """The paths of the selected checkpoints, in the order of epochs.

    `str` of it is a table.

    Args:
        selected: Sequence of `Candidate`s.
        excluded: Dict from the path of each other checkpoint to the reason.
        rule: String, the rule by which they were selected.
    """

    selected: Sequence[Candidate]
    excluded: Mapping[Path, str]
    rule: str

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        return [candidate.path for candidate in self.selected][index]

    def __len__(self) -> int:
        return len(self.selected)

    def __repr__(self) -> str:
        return (
            f"Selection(rule={self.rule!r}, selected={len(self.selected)}, "
            f"excluded={len(self.excluded)})"
        )

    def __str__(self) -> str:
        rows = [
            (
                str(c.path),
                str(c.epoch),
                "" if c.score is None else f"{c.score:g}",
            )
            for c in self.selected
        ]
        excluded = [
            f"excluded: {count} ({reason})"
            for reason, count in Counter(self.excluded.values()).items()
        ]
        lines = table(("checkpoint", "epoch", "score"), rows)
        return "\n".join([f"{self.rule}:", lines, *excluded])


def select_checkpoints(
    directory: str | os.PathLike[str],
    *,
    last: int | None = None,
    best: int | None = None,
    monitor: str = "val_loss",
    mode: str = "auto",
    until_epoch: int | None = None,
    pattern: str | None = None,
    csv_log: str | os.PathLike[str] | None = None,
) -> Selection:
    """Select checkpoints of a directory by epoch or by a metric.

    Args:
        directory: String or path-like, a directory of files named by
            `keras.callbacks.ModelCheckpoint`, or of steps written by
            `keras.callbacks.OrbaxCheckpoint`, which count as epochs. With
            `save_freq="epoch"` these start at 0.
        last: Positive integer, the number of latest checkpoints to select.
            Exactly one of `last` and `best` is required. Defaults to `None`.
        best: Positive integer, the number of best checkpoints to select. Of
            equal scores the later one is better. Defaults to `None`.
        monitor: String, the name of the metric for `best`. Without `pattern`,
            the number in a file name is taken for this metric. Defaults to
            `"val_loss"`.
        mode: String, `"min"`, `"max"` or `"auto"`, whether a lower or a higher
            metric is better. `"auto"` infers it from the name of the metric,
            which must be a loss or a metric of Keras. Defaults to `"auto"`.
        until_epoch: Non-negative integer, the latest epoch to select from.
            Defaults to `None`, all epochs.
        pattern: String, the `filepath` that `ModelCheckpoint` received, with or
            without its directory. Defaults to `None`: names end in `{epoch}` or
            `{epoch}-{metric}`, followed by the suffix.
        csv_log: String or path-like, the file of a `CSVLogger` to read the
            metric from. Defaults to `None`: the metric is read from the file
            names or from the metrics saved with Orbax steps, which
            `keras.callbacks.OrbaxCheckpoint` does not save.

    Example:

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in ("01-0.500", "02-0.300", "03-0.400"):
    ...         pathlib.Path(directory, f"{name}.weights.h5").touch()
    ...     [path.name for path in select_checkpoints(directory, best=2)]
    ['02-0.300.weights.h5', '03-0.400.weights.h5']

    Returns:
        A `Selection`: a sequence of paths in the order of epochs. `str` of it
        shows the selected checkpoints, and why others were excluded.

    Raises:
        ValueError: If an argument is invalid, if the directory has too few
            checkpoints, or if the direction of the metric cannot be inferred.
        OSError: If the directory or `csv_log` cannot be read.
    """
    count = _count(last, best)
    order = _Order(
        monitor,
        best is not None,
        best is not None and arguments.is_higher_better(monitor, mode),
    )
    scores = None if csv_log is None else read_metric(Path(csv_log), monitor)
    place = as_path(directory)
    with network_errors_as_os_errors(place):
        candidates, excluded = _candidates(place, pattern, monitor, scores)
    where = "" if csv_log is None else f" in {Path(csv_log).name!r}"
    for candidate in candidates:
        if until_epoch is not None and candidate.epoch > until_epoch:
            excluded[candidate.path] = f"after epoch {until_epoch}"
        elif order.by_metric and candidate.score is None:
            excluded[candidate.path] = f"has no {monitor}{where}"
    eligible = [c for c in candidates if c.path not in excluded]
    if len(eligible) < count:
        raise ValueError(
            f"`directory` must have {count} checkpoints to select from. "
            f"Received: directory={str(directory)!r}, which has {len(eligible)}"
            + "".join(f"; {path.name}: {r}" for path, r in excluded.items())
        )
    ranked = sorted(eligible, key=order.key)
    for candidate in ranked[:-count]:
        excluded[candidate.path] = f"not among {order.rule(count)}"
    selected = sorted(ranked[-count:], key=lambda candidate: candidate.epoch)
    rule = f"{order.rule(count)}, of {len(eligible)}"
    return Selection(tuple(selected), excluded, rule)


def _count(last: int | None, best: int | None) -> int:
    if (last is None) == (best is None):
        raise ValueError(
            "Exactly one of `last` and `best` must be given. Received: "
            f"last={last}, best={best}"
        )
    if best is None:
        return arguments.integer("last", last, at_least=1)
    return arguments.integer("best", best, at_least=1)


@dataclass(frozen=True)
class _Order:
    """Sorts checkpoints so that those to select come last."""

    monitor: str
    by_metric: bool
    is_higher_better: bool

    def key(self, candidate: Candidate) -> tuple[float, int]:
        if not self.by_metric or candidate.score is None:
            return 0, candidate.epoch
        sign = 1 if self.is_higher_better else -1
        return sign * candidate.score, candidate.epoch

    def rule(self, count: int) -> str:
        if not self.by_metric:
            return f"the last {count}"
        extreme = "highest" if self.is_higher_better else "lowest"
        return f"the {count} with the {extreme} {self.monitor}"


def _candidates(
    directory: Path,
    pattern: str | None,
    monitor: str,
    scores: Mapping[int, float] | None,
) -> tuple[list[Candidate], dict[Path, str]]:
    if steps := steps_in(directory):
        if scores is None:
            scores = metrics_of_steps(steps, monitor)
        else:
            # Keras' callback numbers its steps from 0.
            scores = {epoch - 1: score for epoch, score in scores.items()}
        return [Candidate(p, s, scores.get(s)) for s, p in steps.items()], {}
    naming = _Naming(pattern, monitor)
    candidates, excluded = [], {}
    for path in checkpoints_in(directory):
        parsed = naming.parse(path.name)
        if parsed is None:
            excluded[path] = (
                "its name has no epoch"
                if pattern is None
                else "its name does not match `pattern`"
            )
            continue
        epoch, score = parsed
        if scores is not None:
            score = scores.get(epoch)
        if score is not None and math.isnan(score):
            score = None
        candidates.append(Candidate(path, epoch, score))
    _refuse_duplicate_epochs(candidates)
    return candidates, excluded


def _refuse_duplicate_epochs(candidates: Sequence[Candidate]) -> None:
    counts = Counter(candidate.epoch for candidate in candidates)
    names = [c.path.name for c in candidates if counts[c.epoch] > 1]
    if names:
        raise ValueError(
            "`directory` must have one checkpoint for each epoch. Received: "
            f"{names}. Pass `pattern` to select among the files."
        )


class _Naming:
    """Parses the names of files."""

    def __init__(self, pattern: str | None, monitor: str) -> None:
        self._pattern = None if pattern is None else _compile(pattern)
        self._monitor = monitor

    def parse(self, name: str) -> tuple[int, float | None] | None:
        """Epoch and score, or `None` if the name has no epoch."""
        if self._pattern is None:
            return _parse_default_name(name)
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        score = match.groupdict().get(_group(self._monitor))
        epoch = int(match[_group("epoch")])
        return epoch, None if score is None else float(score)


def _parse_default_name(name: str) -> tuple[int, float | None] | None:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    match = _NAME.search(name)
    if match is None:
        return None
    score = match["score"]
    return int(match["epoch"]), None if score is None else float(score)


def _compile(pattern: str) -> re.Pattern[str]:
    """The regular expression of the names that a format string makes."""
    expression, fields = "", set()
    for literal, field, _, _ in string.Formatter().parse(Path(pattern).name):
        expression += re.escape(literal)
        if field is None:
            continue
        group = _group(field)
        if field in fields:
            expression += f"(?P={group})"
        else:
            number = r"\d+" if field == "epoch" else _NUMBER
            expression += f"(?P<{group}>{number})"
            fields.add(field)
    if "epoch" not in fields:
        raise ValueError(
            "`pattern` must have the field `{epoch}`. Received: "
            f"pattern={pattern!r}"
        )
    return re.compile(expression)


def _group(field: str) -> str:
    """A valid name of a group for a field with any characters."""
    return f"f{field.encode().hex()}"
