"""Which checkpoints of a folder to average."""

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
from keras_wavg.files.average_report import table
from keras_wavg.files.checkpoint import SUFFIXES
from keras_wavg.files.metric_log import logged
from keras_wavg.files.opener import checkpoints_in
from keras_wavg.files.orbax.reading import metrics_of_steps
from keras_wavg.files.orbax.steps import steps_in
from keras_wavg.files.remote import located, reached

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
# `{epoch:02d}-{val_loss:.3f}` or `{epoch:02d}`, at the end of a name. The score
# must show its digits, as 2024-05 is none.
_NAME = re.compile(
    rf"(?P<epoch>\d+)(?:-(?P<score>(?=\D*\d*[.eEni]){_NUMBER}))?$"
)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a folder.

    Args:
        path: `pathlib.Path` of the file.
        epoch: Integer, as its name says, from 1 on, or the step of Orbax.
        score: Float, the metric at the end of that epoch, or `None`.
    """

    path: Path
    epoch: int
    score: float | None


@dataclass(frozen=True)
class Selection(Sequence[Path]):
    """The paths of the chosen checkpoints, the oldest first.

    Args:
        chosen: Sequence of `Candidate`s.
        left_out: Dict from the paths of the others to the reasons.
        rule: String, by what they were chosen.
    """

    chosen: Sequence[Candidate]
    left_out: Mapping[Path, str]
    rule: str

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        return [candidate.path for candidate in self.chosen][index]

    def __len__(self) -> int:
        return len(self.chosen)

    def __str__(self) -> str:
        rows = [
            (str(c.path), str(c.epoch), _text(c.score), "chosen")
            for c in self.chosen
        ]
        shown = table(("checkpoint", "epoch", "score", ""), rows)
        left_out = [
            f"left out: {count} ({reason})"
            for reason, count in Counter(self.left_out.values()).items()
        ]
        return "\n".join([f"{self.rule}:", shown, *left_out])


def select_checkpoints(
    folder: str | os.PathLike[str],
    *,
    last: int | None = None,
    best: int | None = None,
    metric: str = "val_loss",
    mode: str = "auto",
    until: int | None = None,
    pattern: str | None = None,
    log: str | os.PathLike[str] | None = None,
) -> Selection:
    """Choose checkpoints of a folder by epoch or by metric.

    Args:
        folder: The folder, of files as `ModelCheckpoint` names them, or of
            steps as `OrbaxCheckpoint` writes them, which count as epochs. The
            epochs of its `save_freq="epoch"` count from 0 on.
        last: Positive integer, how many of the latest to choose.
        best: Positive integer, how many of the best to choose instead. Of two
            as good, the later one is the better.
        metric: String, the name of the metric that says how good. The default
            names do not say of what metric their number is: it counts as
            this one. Pass `pattern` to be sure. Defaults to `"val_loss"`.
        mode: `"min"`, `"max"`, or `"auto"`: the higher the better if the name
            of the metric says accuracy, AUC, F1, precision or recall. Defaults
            to `"auto"`.
        until: Integer, the latest epoch that counts. Defaults to `None`.
        pattern: String, how files are named: what `ModelCheckpoint` got as
            `filepath`, without the folder. By default a name must end in
            `{epoch}` or `{epoch}-{metric}`, before the suffix.
        log: The file of a `CSVLogger`, to read the metric from. By default it
            is read from the names, or from what Orbax has of a step, which
            Keras' callback leaves empty.

    Example:

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("01-0.500", "02-0.300", "03-0.400"):
    ...         pathlib.Path(folder, f"{name}.weights.h5").touch()
    ...     [path.name for path in select_checkpoints(folder, best=2)]
    ['02-0.300.weights.h5', '03-0.400.weights.h5']

    Returns:
        A `Selection`: a sequence of paths, the oldest first. Printed, it says
        what was chosen, and how many were left out, and why.

    Raises:
        ValueError: If an argument is not one of these, or if there are not that
            many checkpoints to choose from.
        OSError: If the folder or the log cannot be read.
    """
    count = _count(last, best)
    order = _Order(
        metric, arguments.is_higher_better(metric, mode), best is not None
    )
    scores = None if log is None else logged(Path(log), metric)
    place = located(folder)
    with reached(place):
        found, left_out = _candidates(place, pattern, metric, scores)
    where = "" if log is None else f" in {Path(log).name!r}"
    for candidate in found:
        if until is not None and candidate.epoch > until:
            left_out[candidate.path] = f"after epoch {until}"
        elif not order.has_place_for(candidate):
            left_out[candidate.path] = f"has no {metric}{where}"
    eligible = [c for c in found if c.path not in left_out]
    if len(eligible) < count:
        raise ValueError(
            f"`folder` must have {count} checkpoints to choose from. Received: "
            f"folder={str(folder)!r}, which has {len(eligible)}"
            + "".join(f"; {p.name}: {why}" for p, why in left_out.items())
        )
    ranked = sorted(eligible, key=order.key)
    for candidate in ranked[:-count]:
        left_out[candidate.path] = f"not among the {order} {count}"
    chosen = sorted(ranked[-count:], key=lambda candidate: candidate.epoch)
    return Selection(
        tuple(chosen), left_out, f"the {order} {count} of {len(eligible)}"
    )


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
    """By which the checkpoints that are wanted come last."""

    metric: str
    is_higher_better: bool
    is_by_metric: bool

    def has_place_for(self, candidate: Candidate) -> bool:
        return candidate.score is not None or not self.is_by_metric

    def key(self, candidate: Candidate) -> tuple[float, int]:
        if not self.is_by_metric or candidate.score is None:
            return 0, candidate.epoch
        sign = 1 if self.is_higher_better else -1
        return sign * candidate.score, candidate.epoch

    def __str__(self) -> str:
        if not self.is_by_metric:
            return "last"
        return (
            f"{'highest' if self.is_higher_better else 'lowest'} {self.metric}"
        )


def _candidates(
    folder: Path,
    pattern: str | None,
    metric: str,
    scores: Mapping[int, float] | None,
) -> tuple[list[Candidate], dict[Path, str]]:
    if steps := steps_in(folder):
        scored = (
            metrics_of_steps(steps, metric)
            if scores is None
            else {
                # Keras' callback counts epochs from 0 on.
                epoch - 1: score
                for epoch, score in scores.items()
            }
        )
        return [Candidate(p, s, scored.get(s)) for s, p in steps.items()], {}
    naming = _Naming(pattern, metric)
    unread = (
        "its name has no epoch"
        if pattern is None
        else "its name is not as `pattern` says"
    )
    found, left_out = [], {}
    for path in checkpoints_in(folder):
        read = naming.read(path.name)
        if read is None:
            left_out[path] = unread
            continue
        epoch, named = read
        score = named if scores is None else scores.get(epoch)
        if score is not None and math.isnan(score):
            score = None
        found.append(Candidate(path, epoch, score))
    _refuse_two_of_an_epoch(found)
    return found, left_out


def _refuse_two_of_an_epoch(found: Sequence[Candidate]) -> None:
    counts = Counter(candidate.epoch for candidate in found)
    twice = [c.path.name for c in found if counts[c.epoch] > 1]
    if twice:
        raise ValueError(
            "`folder` must have one checkpoint of an epoch. Received: "
            f"{twice}. Pass `pattern` to say which files are meant."
        )


class _Naming:
    """Reads epoch and metric from the name of a file."""

    def __init__(self, pattern: str | None, metric: str) -> None:
        self._pattern = None if pattern is None else _compiled(pattern)
        self._metric = metric

    def read(self, name: str) -> tuple[int, float | None] | None:
        """Epoch and score, or `None` if the name has no epoch."""
        if self._pattern is None:
            return _read_by_default(name)
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        score = match.groupdict().get(_group(self._metric))
        epoch = int(match[_group("epoch")])
        return epoch, None if score is None else float(score)


def _read_by_default(name: str) -> tuple[int, float | None] | None:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    match = _NAME.search(name)
    if match is None:
        return None
    score = match["score"]
    return int(match["epoch"]), None if score is None else float(score)


def _compiled(pattern: str) -> re.Pattern[str]:
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
    """The name of a field among the groups, whatever characters it has."""
    return f"f{field.encode().hex()}"


def _text(score: float | None) -> str:
    return "" if score is None else f"{score:g}"
