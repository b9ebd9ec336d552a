"""The average of any horizon from snapshots of a training."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.average_report import AverageReport, table
from keras_wavg.files.paths import Paths, checked, refuse_output
from keras_wavg.files.snapshots import profiles_in
from keras_wavg.files.solution import Solution, solve
from keras_wavg.horizon import decay_from
from keras_wavg.profile import Profile


@dataclass(frozen=True)
class SynthesisReport:
    """What `synthesize` did. Printed, it is a table.

    Args:
        solution: A `Solution`.
        target: `Profile` that was asked for.
        average: `AverageReport` of the output.
    """

    solution: Solution
    target: Profile
    average: AverageReport

    def __str__(self) -> str:
        return f"{self.average}\ntarget: {self.target}\n{self.solution}"


@dataclass(frozen=True)
class PlannedSynthesis:
    """What `synthesize` would do. Printed, it is a table.

    Args:
        snapshots: Sequence of `pathlib.Path`s.
        solution: A `Solution`, with a coefficient for each of them.
        target: `Profile` that was asked for.
    """

    snapshots: Sequence[Path]
    solution: Solution
    target: Profile

    def __str__(self) -> str:
        coefficients = self.solution.coefficients
        rows = [
            (str(path), f"{coefficient:.6g}")
            for path, coefficient in zip(
                self.snapshots, coefficients, strict=True
            )
        ]
        shown = table(("snapshot", "coefficient"), rows)
        return f"{shown}\ntarget: {self.target}\n{self.solution}"


@dataclass(frozen=True)
class MadeWidth:
    """An average of a sweep.

    Args:
        sigma_rel: Float, its width.
        path: The file, or `None` if the residual is too large.
        solution: A `Solution`.
    """

    sigma_rel: float
    path: Path | None
    solution: Solution

    def __str__(self) -> str:
        made = self.path or "not made, the residual is too large"
        residual = f"residual {self.solution.residual:.2%}"
        return f"sigma_rel {self.sigma_rel:.4g}, {residual}: {made}"


def synthesize(
    snapshots: Paths,
    output: str | os.PathLike[str],
    *,
    target: Profile | None = None,
    sigma_rel: float | None = None,
    decay: float | None = None,
    half_life: float | None = None,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
    overwrite: bool = False,
) -> SynthesisReport:
    """Make the average of any horizon, after the training.

    The weights in a snapshot are a sum over past steps, by its `Profile`. The
    sum of snapshots whose profile comes closest to the one asked for, by least
    squares in float64, is the average of that profile, as close as they can
    make it. Snapshots cannot resolve what happened between two of them, nor
    before the first: with those of `PowerEMA((0.05, 0.1))` after each epoch, 10
    epochs make widths from 0.03 to 0.2, 20 epochs from 0.02 to 0.25.

    Statistics of `BatchNormalization` are summed like weights, some with
    negative coefficients: measure them anew by `keras_wavg.update_bn`.

    Args:
        snapshots: Sequence of files: those of `PowerEMA(snapshots=...)` and of
            `save_weights` of an average, which carry their profile, and
            checkpoints of a compiled model, whose optimizer knows its step.
        output: The file to write, see `average_checkpoints`.
        target: `Profile` to be made, at the last step of the snapshots. Or one
            of these:
        sigma_rel: Float in [1e-9, 1 / sqrt(12)], the width of a power-function
            average.
        decay: Float in [0, 1), of an `EMA`.
        half_life: Positive float, of an `EMA`, in optimizer steps.
        gradient_accumulation_steps: Positive integer, the batches of an
            optimizer step. The optimizer in a file counts batches, and a
            `.keras` file alone tells how many are a step. Needed with other
            checkpoints, if the target is told in steps or some snapshots carry
            their profile. Defaults to `None`.
        max_residual: Float, the largest residual that is accepted. Defaults to
            `0.1`.
        overwrite: Boolean, whether an existing file may be replaced. Defaults
            to `False`.

    Example:

    ```python
    model.fit(x, y, callbacks=[PowerEMA((0.05, 0.1), snapshots="run")])
    files = sorted(pathlib.Path("run").iterdir())
    print(synthesize(files, "wide.weights.h5", sigma_rel=0.2))
    ```

    Returns:
        A `SynthesisReport`, with the coefficients, the residual and the
        condition number.

    Raises:
        ValueError: If not exactly one target is given, if a snapshot does not
            know its steps, if the residual is too large, or whatever
            `average_checkpoints` refuses.
        FileExistsError: If there is a file and not `overwrite`.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3.2
    """
    plan = planned_synthesis(
        snapshots,
        target=target,
        sigma_rel=sigma_rel,
        decay=decay,
        half_life=half_life,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_residual=max_residual,
    )
    average = average_checkpoints(
        plan.snapshots,
        output,
        weights=plan.solution.coefficients,
        overwrite=overwrite,
    )
    return SynthesisReport(plan.solution, plan.target, average)


def planned_synthesis(
    snapshots: Paths,
    *,
    target: Profile | None = None,
    sigma_rel: float | None = None,
    decay: float | None = None,
    half_life: float | None = None,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
) -> PlannedSynthesis:
    """What `synthesize` would do.

    Args: See `synthesize`.

    Returns:
        A `PlannedSynthesis`.

    Raises:
        ValueError: See `synthesize`.
    """
    given = checked(snapshots)
    profiles = profiles_in(
        given,
        gradient_accumulation_steps,
        counts_steps=sigma_rel is None,
    )
    steps = max(profile.steps for profile in profiles)
    wanted = _target(target, sigma_rel, decay, half_life, steps)
    solution = solve(profiles, wanted)
    if not solution.residual <= max_residual:
        raise ValueError(
            "The snapshots must be able to make the average that is asked for. "
            f"Received: {len(given)} snapshots, which leave a residual of "
            f"{solution.residual:.1%} (max_residual={max_residual}). Take "
            "more snapshots, or ask for a profile closer to theirs."
        )
    return PlannedSynthesis(tuple(given), solution, wanted)


def sweep(
    snapshots: Paths,
    sigma_rels: Sequence[float],
    score: Callable[[Path], Any],
    folder: str | os.PathLike[str],
    *,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
    overwrite: bool = False,
) -> dict[float, Any]:
    """Score the averages of several widths.

    Widths that the snapshots cannot make are left out, with a warning.

    Args:
        snapshots: See `synthesize`.
        sigma_rels: Sequence of floats, the widths.
        score: Function from the path of a `.weights.h5` to a number, or to
            whatever else is to be kept of it.
        folder: Where the files are written, `sigma_<width>.weights.h5`. It is
            made if it is missing.
        gradient_accumulation_steps: See `synthesize`.
        max_residual: See `synthesize`.
        overwrite: See `synthesize`.

    Example:

    ```python
    model = build_model()  # without an averaging callback

    def loss(path):
        model.load_weights(path)
        update_bn(model, x, verbose=0)
        return model.evaluate(x_val, y_val, verbose=0)

    scores = sweep(files, [0.03, 0.05, 0.1, 0.2], loss, "widths")
    best = min(scores, key=scores.get)
    ```

    Returns:
        Dict from each width that could be made to what `score` returned.

    Raises:
        ValueError: If none of the widths can be made, if two are the same in
            six digits, or as `synthesize`.
        FileExistsError: If there is a file and not `overwrite`.
    """
    given = checked(snapshots)
    planned = planned_widths(
        given,
        sigma_rels,
        folder,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_residual=max_residual,
        overwrite=overwrite,
    )
    scores = {}
    for made in made_widths(given, planned, overwrite=overwrite):
        if made.path is None:
            warnings.warn(f"Left out: {made}", stacklevel=2)
        else:
            scores[made.sigma_rel] = score(made.path)
    if not scores:
        raise ValueError(
            "The snapshots must be able to make one of the widths. Received: "
            f"sigma_rels={list(sigma_rels)}, max_residual={max_residual}"
        )
    return scores


def made_widths(
    snapshots: Paths, planned: Sequence[MadeWidth], *, overwrite: bool
) -> Iterator[MadeWidth]:
    """Make the averages of several widths, one after the other.

    Args:
        snapshots: See `sweep`.
        planned: What `planned_widths` gave for them.
        overwrite: See `sweep`.

    Yields:
        Each `MadeWidth`, when its file is there.

    Raises:
        FileExistsError: If there is a file and not `overwrite`.
    """
    for width in planned:
        if width.path is not None:
            width.path.parent.mkdir(parents=True, exist_ok=True)
            average_checkpoints(
                snapshots,
                width.path,
                weights=width.solution.coefficients,
                overwrite=overwrite,
            )
        yield width


def planned_widths(
    snapshots: Paths,
    sigma_rels: Sequence[float],
    folder: str | os.PathLike[str],
    *,
    gradient_accumulation_steps: int | None = None,
    max_residual: float,
    overwrite: bool,
) -> list[MadeWidth]:
    """The averages that a sweep would make.

    Args: See `sweep`.

    Returns:
        List with a `MadeWidth` for each.

    Raises:
        ValueError: If a width does not exist, if two are the same in six
            digits, or if a snapshot is none.
        FileExistsError: If there is a file and not `overwrite`.
    """
    profiles = profiles_in(
        checked(snapshots), gradient_accumulation_steps, counts_steps=False
    )
    steps = max(profile.steps for profile in profiles)
    targets = {float(s): Profile.power(s, steps) for s in sigma_rels}
    paths = _paths(list(targets), Path(folder), overwrite=overwrite)
    planned = []
    for (sigma_rel, target), path in zip(targets.items(), paths, strict=True):
        solution = solve(profiles, target)
        is_made = solution.residual <= max_residual
        planned.append(
            MadeWidth(sigma_rel, path if is_made else None, solution)
        )
    return planned


def _paths(
    sigma_rels: Sequence[float], folder: Path, *, overwrite: bool
) -> list[Path]:
    """The files of the widths. If one is refused, none is made."""
    paths = [folder / f"sigma_{s:g}.weights.h5" for s in sigma_rels]
    if len(set(paths)) < len(paths):
        raise ValueError(
            "`sigma_rels` must differ in their first six digits, by which the "
            f"files are named. Received: sigma_rels={list(sigma_rels)}. Leave "
            "one of two out."
        )
    if folder.exists():
        for path in paths:
            refuse_output(path, overwrite=overwrite)
    return paths


def _target(
    target: Profile | None,
    sigma_rel: float | None,
    decay: float | None,
    half_life: float | None,
    steps: int,
) -> Profile:
    given = [
        value
        for value in (target, sigma_rel, decay, half_life)
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            "Exactly one of `target`, `sigma_rel`, `decay` and `half_life` "
            f"must be given. Received: {len(given)} of them"
        )
    if target is not None:
        return target
    if sigma_rel is not None:
        return Profile.power(sigma_rel, steps)
    return Profile.ema(decay_from(decay=decay, half_life=half_life), steps)
