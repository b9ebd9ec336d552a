"""Synthesizes averages of another horizon from snapshots of a training."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.paths import Paths, check_output, checkpoint_paths
from keras_wavg.files.profile_fit import Solution, fit_profiles
from keras_wavg.files.snapshots import profiles_in
from keras_wavg.files.text_table import table
from keras_wavg.profile import Profile


@dataclass(frozen=True)
class SynthesisReport:
    """The result of `synthesize`. `str` of it is a table.

    Args:
        solution: `Solution`, with a coefficient for each snapshot.
        target: `Profile`, the requested one.
        average: `AverageReport` of the output.
    """

    solution: Solution
    target: Profile
    average: AverageReport

    def __repr__(self) -> str:
        return (
            f"SynthesisReport(output={str(self.average.output)!r}, "
            f"target={self.target!r}, solution={self.solution!r})"
        )

    def __str__(self) -> str:
        return f"{self.average}\ntarget: {self.target}\n{self.solution}"


@dataclass(frozen=True)
class SynthesisPlan:
    """What `synthesize` will do. `str` of it is a table.

    Args:
        snapshots: Sequence of `pathlib.Path`s.
        solution: `Solution`, with a coefficient for each snapshot.
        target: `Profile`, the requested one.
    """

    snapshots: Sequence[Path]
    solution: Solution
    target: Profile

    def __repr__(self) -> str:
        return (
            f"SynthesisPlan(snapshots={len(self.snapshots)}, "
            f"target={self.target!r}, solution={self.solution!r})"
        )

    def __str__(self) -> str:
        coefficients = self.solution.coefficients
        rows = [
            (str(path), f"{coefficient:.6g}")
            for path, coefficient in zip(
                self.snapshots, coefficients, strict=True
            )
        ]
        lines = table(("snapshot", "coefficient"), rows)
        return f"{lines}\ntarget: {self.target}\n{self.solution}"


@dataclass(frozen=True)
class SweepAverage:
    """An average of a sweep.

    Args:
        sigma_rel: Float, its width.
        path: `pathlib.Path` of its file, or `None` if the residual is too
            large.
        solution: `Solution`, with a coefficient for each snapshot.
    """

    sigma_rel: float
    path: Path | None
    solution: Solution

    def __str__(self) -> str:
        result = self.path or "not written, the residual is too large"
        residual = f"residual {self.solution.residual:.2%}"
        return f"sigma_rel {self.sigma_rel:.4g}, {residual}: {result}"


def synthesize(
    filepaths: Paths,
    output_filepath: str | os.PathLike[str],
    *,
    target: Profile | None = None,
    sigma_rel: float | None = None,
    decay: float | None = None,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
    overwrite: bool = False,
    verbose: Any = "auto",
) -> SynthesisReport:
    """Synthesize the average of another horizon after training.

    The weights in a snapshot are a sum over past steps, with the coefficients
    of its `Profile`. The output is the sum of snapshots whose profile is
    closest to the requested one, by least squares in float64. Snapshots cannot
    resolve what happened between two of them, nor before the first: those of
    `PowerEMA((0.05, 0.1))` after each epoch are enough for widths from 0.03 to
    0.2 after 10 epochs, and from 0.02 to 0.25 after 20 epochs.

    The moving statistics of `BatchNormalization` are summed like weights, some
    with negative coefficients. Measure them with `keras_wavg.update_bn`.

    Args:
        filepaths: Sequence of strings or paths, the snapshots: files of
            `PowerEMA(snapshot_dir=...)`, averages saved by `save_weights`,
            which contain their profile, or checkpoints of a compiled model,
            whose optimizer contains the step.
        output_filepath: String or path-like, the file to write. See
            `average_checkpoints`.
        target: `Profile` of the average, at the last step of the snapshots.
            Exactly one of `target`, `sigma_rel` and `decay` is required.
            Defaults to `None`.
        sigma_rel: Float in [1e-9, 1 / sqrt(12)], the relative width of a
            power-function average. Defaults to `None`.
        decay: Float in [0, 1), the decay of an `EMA` for each optimizer step.
            Use `decay=decay_from(half_life=...)` for a half-life. Defaults to
            `None`.
        gradient_accumulation_steps: Positive integer, the number of batches
            for each optimizer step. The optimizer in a file counts batches, and
            only a `.keras` file contains this number. It is required for
            other checkpoints without a profile, unless `sigma_rel` is given and
            no snapshot contains a profile. Defaults to `None`.
        max_residual: Non-negative float, the largest accepted residual.
            Defaults to `0.1`.
        overwrite: Boolean, whether to replace an existing file. Defaults to
            `False`.
        verbose: `"auto"`, 0 or 1, whether to show a progress bar on standard
            error. `"auto"` shows it on a terminal. Defaults to `"auto"`.

    Example:

    ```python
    model.fit(x, y, callbacks=[PowerEMA((0.05, 0.1), snapshot_dir="run")])
    files = sorted(pathlib.Path("run").iterdir())
    print(synthesize(files, "wide.weights.h5", sigma_rel=0.2))
    ```

    Returns:
        A `SynthesisReport` with the coefficients, the residual and the
        condition number.

    Raises:
        ValueError: If not exactly one target is given, if the step of a
            snapshot is unknown, if the residual is too large, or as
            `average_checkpoints`.
        FileExistsError: If the output exists and `overwrite` is `False`.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3.2
    """
    plan = plan_synthesis(
        filepaths,
        target=target,
        sigma_rel=sigma_rel,
        decay=decay,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_residual=max_residual,
    )
    average = average_checkpoints(
        plan.snapshots,
        output_filepath,
        weights=plan.solution.coefficients,
        overwrite=overwrite,
        verbose=verbose,
    )
    return SynthesisReport(plan.solution, plan.target, average)


def plan_synthesis(
    filepaths: Paths,
    *,
    target: Profile | None = None,
    sigma_rel: float | None = None,
    decay: float | None = None,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
) -> SynthesisPlan:
    """Find the coefficients of `synthesize`, without writing anything.

    Args: See `synthesize`.

    Returns:
        A `SynthesisPlan`.

    Raises:
        ValueError: See `synthesize`.
    """
    paths = checkpoint_paths(filepaths)
    profiles = profiles_in(
        paths, gradient_accumulation_steps, in_steps=sigma_rel is None
    )
    steps = max(profile.steps for profile in profiles)
    requested = _target(target, sigma_rel, decay, steps)
    solution = fit_profiles(profiles, requested)
    if not solution.residual <= max_residual:
        raise ValueError(
            "The snapshots must be sufficient for the requested average. "
            f"Received: {len(paths)} snapshots, which leave a residual of "
            f"{solution.residual:.1%} (max_residual={max_residual}). Use "
            "more snapshots, or request a profile closer to theirs."
        )
    return SynthesisPlan(tuple(paths), solution, requested)


def sweep(
    filepaths: Paths,
    output_dir: str | os.PathLike[str],
    sigma_rels: Sequence[float],
    score: Callable[[Path], Any],
    *,
    gradient_accumulation_steps: int | None = None,
    max_residual: float = 0.1,
    overwrite: bool = False,
    verbose: Any = "auto",
) -> dict[float, Any]:
    """Synthesize and score power-function averages of several widths.

    Widths for which the snapshots are not sufficient are skipped, with a
    warning.

    Args:
        filepaths: Sequence of strings or paths, the snapshots. See
            `synthesize`.
        output_dir: String or path-like, the directory for the files
            `sigma_<width>.weights.h5`. It is created if it is missing.
        sigma_rels: Sequence of floats, the relative widths.
        score: Function from the path of a `.weights.h5` file to a number, or to
            any other result.
        gradient_accumulation_steps: Positive integer, the number of batches
            for each optimizer step. See `synthesize`. Defaults to `None`.
        max_residual: Non-negative float, the largest accepted residual.
            Defaults to `0.1`.
        overwrite: Boolean, whether to replace existing files. Defaults to
            `False`.
        verbose: `"auto"`, 0 or 1, whether to show progress bars on standard
            error. `"auto"` shows them on a terminal. Defaults to `"auto"`.

    Example:

    ```python
    model = build_model()  # without an averaging callback

    def loss(path):
        model.load_weights(path)
        update_bn(model, x, verbose=0)
        return model.evaluate(x_val, y_val, verbose=0)

    scores = sweep(files, "widths", [0.03, 0.05, 0.1, 0.2], loss)
    best = min(scores, key=scores.get)
    ```

    Returns:
        Dict from each width that was synthesized to the result of `score`.

    Raises:
        ValueError: If no width can be synthesized, if two widths are equal to
            six digits, or as `synthesize`.
        FileExistsError: If a file exists and `overwrite` is `False`.
    """
    paths = checkpoint_paths(filepaths)
    plan = plan_sweep(
        paths,
        output_dir,
        sigma_rels,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_residual=max_residual,
        overwrite=overwrite,
    )
    scores = {}
    for made in run_sweep(paths, plan, overwrite=overwrite, verbose=verbose):
        if made.path is None:
            warnings.warn(f"Skipped: {made}", stacklevel=2)
        else:
            scores[made.sigma_rel] = score(made.path)
    if not scores:
        raise ValueError(
            "The snapshots must be sufficient for at least one width. Received:"
            f" sigma_rels={list(sigma_rels)}, max_residual={max_residual}"
        )
    return scores


def plan_sweep(
    filepaths: Paths,
    output_dir: str | os.PathLike[str],
    sigma_rels: Sequence[float],
    *,
    gradient_accumulation_steps: int | None = None,
    max_residual: float,
    overwrite: bool,
) -> list[SweepAverage]:
    """Find the coefficients of a sweep, without writing anything.

    Args: See `sweep`.

    Returns:
        List with a `SweepAverage` for each width.

    Raises:
        ValueError: If a width is out of range, if two are equal to six digits,
            or if the step of a snapshot is unknown.
        FileExistsError: If a file exists and `overwrite` is `False`.
    """
    profiles = profiles_in(
        checkpoint_paths(filepaths), gradient_accumulation_steps, in_steps=False
    )
    steps = max(profile.steps for profile in profiles)
    targets = {float(s): Profile.power(s, steps) for s in sigma_rels}
    paths = _output_paths(list(targets), Path(output_dir), overwrite=overwrite)
    plan = []
    for (sigma_rel, target), path in zip(targets.items(), paths, strict=True):
        solution = fit_profiles(profiles, target)
        is_sufficient = solution.residual <= max_residual
        plan.append(
            SweepAverage(sigma_rel, path if is_sufficient else None, solution)
        )
    return plan


def run_sweep(
    filepaths: Paths,
    plan: Sequence[SweepAverage],
    *,
    overwrite: bool,
    verbose: Any,
) -> Iterator[SweepAverage]:
    """Write the averages of a sweep, one after the other.

    Args:
        filepaths: See `sweep`.
        plan: List returned by `plan_sweep`.
        overwrite: See `sweep`.
        verbose: See `sweep`.

    Yields:
        Each `SweepAverage` of the plan, after its file has been written.

    Raises:
        FileExistsError: If a file exists and `overwrite` is `False`.
    """
    for average in plan:
        if average.path is not None:
            average.path.parent.mkdir(parents=True, exist_ok=True)
            average_checkpoints(
                filepaths,
                average.path,
                weights=average.solution.coefficients,
                overwrite=overwrite,
                verbose=verbose,
            )
        yield average


def _output_paths(
    sigma_rels: Sequence[float], directory: Path, *, overwrite: bool
) -> list[Path]:
    """The files of all widths, refused together if one cannot be written."""
    paths = [directory / f"sigma_{s:g}.weights.h5" for s in sigma_rels]
    if len(set(paths)) < len(paths):
        raise ValueError(
            "`sigma_rels` must differ in their first six digits, which are in "
            f"the names of the files. Received: sigma_rels={list(sigma_rels)}. "
            "Remove one of two."
        )
    if directory.exists():
        for path in paths:
            check_output(path, overwrite=overwrite)
    return paths


def _target(
    target: Profile | None,
    sigma_rel: float | None,
    decay: float | None,
    steps: int,
) -> Profile:
    if target is not None and sigma_rel is None and decay is None:
        return target
    if sigma_rel is not None and target is None and decay is None:
        return Profile.power(sigma_rel, steps)
    if decay is not None and target is None and sigma_rel is None:
        return Profile.ema(decay, steps)
    raise ValueError(
        "Exactly one of `target`, `sigma_rel` and `decay` must be given. "
        f"Received: target={target!r}, sigma_rel={sigma_rel}, decay={decay}"
    )
