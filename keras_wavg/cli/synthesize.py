"""`keras-wavg synthesize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from keras_wavg.cli.terminal import (
    FAILED,
    Json,
    place,
    readable_errors,
    to_json,
)


def synthesize(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=place,
            help="Snapshots, or one folder of them.",
            metavar="FILES|FOLDER",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=place,
            help="The file to write; for a sweep, a folder.",
        ),
    ],
    sigma_rel: Annotated[
        float | None, typer.Option(help="Width of a power-function average.")
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Decay of an EMA instead.")
    ] = None,
    half_life: Annotated[
        float | None, typer.Option(help="Or its half-life, see --unit.")
    ] = None,
    unit: Annotated[
        Literal["steps", "epochs", "samples"],
        typer.Option(help="Of the half-life: optimizer steps, or others."),
    ] = "steps",
    steps_per_epoch: Annotated[
        float | None, typer.Option(help="For --unit epochs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="For --unit samples.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Many widths: FROM:TO:COUNT, a file sigma_<width> for each "
            "that can be made."
        ),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            help="The batches of an optimizer step, where files do not tell."
        ),
    ] = None,
    max_residual: Annotated[
        float, typer.Option(help="The largest residual that is accepted.")
    ] = 0.1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the average of any horizon from snapshots of a training."""
    with readable_errors(context):
        sizes = steps_per_epoch, batch_size
        target: dict[str, Any] = {
            "sigma_rel": sigma_rel,
            "decay": _decay(decay, half_life, unit, sizes),
        }
        options: dict[str, Any] = {
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "max_residual": max_residual,
            "overwrite": overwrite,
        }
        snapshots = _snapshots(paths)
        if sweep is None:
            options |= target
            found = _one(snapshots, output, dry_run=dry_run, **options)
        elif any(value is not None for value in target.values()):
            raise typer.BadParameter("--sweep has widths of its own")
        else:
            options["sigma_rels"] = _widths(sweep)
            found = _many(snapshots, output, dry_run=dry_run, **options)
        _show(found, as_json=as_json, dry_run=dry_run)


def _one(
    snapshots: Sequence[Path],
    output: Path,
    *,
    dry_run: bool,
    overwrite: bool,
    **options: Any,
) -> Any:
    from keras_wavg.files import synthesis
    from keras_wavg.files.paths import refuse_output

    if not dry_run:
        return synthesis.synthesize(
            snapshots, output, overwrite=overwrite, **options
        )
    refuse_output(output, overwrite=overwrite, paths=snapshots)
    return synthesis.planned_synthesis(snapshots, **options)


def _many(
    snapshots: Sequence[Path],
    folder: Path,
    *,
    dry_run: bool,
    overwrite: bool,
    **options: Any,
) -> Any:
    from keras_wavg.files import synthesis

    planned = synthesis.planned_widths(
        snapshots, folder=folder, overwrite=overwrite, **options
    )
    if dry_run:
        return planned
    return list(synthesis.made_widths(snapshots, planned, overwrite=overwrite))


def _snapshots(paths: Sequence[Path]) -> Sequence[Path]:
    if len(paths) == 1 and paths[0].is_dir():
        from keras_wavg.files.opener import checkpoints_in

        return checkpoints_in(paths[0])
    return paths


def _decay(
    decay: float | None,
    half_life: float | None,
    unit: str,
    sizes: tuple[float | None, int | None],
) -> float | None:
    if half_life is None:
        if unit != "steps" or any(sizes):
            raise typer.BadParameter("--unit is of --half-life")
        return decay
    if decay is not None:
        raise typer.BadParameter("only one of --decay and --half-life")
    from keras_wavg.horizon import decay_from

    steps_per_epoch, batch_size = sizes
    return decay_from(
        half_life=half_life,
        unit=unit,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
    )


def _show(found: Any, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        typer.echo(to_json(found))
    else:
        lines = found if isinstance(found, list) else [found]
        typer.echo("\n".join(map(str, lines)))
        if dry_run:
            typer.echo("dry run: nothing was written")
    if isinstance(found, list) and not any(width.path for width in found):
        raise typer.Exit(FAILED)


def _widths(text: str) -> list[float]:
    import numpy

    from keras_wavg.profile import WIDEST

    try:
        first, last, count = text.split(":")
        # Nothing is wider than the plain mean.
        low, high = float(first), min(float(last), WIDEST)
        widths: list[float] = numpy.linspace(low, high, int(count)).tolist()
    except ValueError as error:
        raise typer.BadParameter(f"--sweep {text}: FROM:TO:COUNT") from error
    if not widths:
        raise typer.BadParameter(f"--sweep {text}: COUNT must be at least 1")
    return widths
