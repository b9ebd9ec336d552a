"""The command `keras-wavg synthesize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keras_wavg.cli.terminal import (
    FAILED,
    Json,
    path_or_url,
    readable_errors,
    to_json,
    verbosity,
)

if TYPE_CHECKING:
    from keras_wavg.files.synthesis import (
        SweepAverage,
        SynthesisPlan,
        SynthesisReport,
    )


def synthesize(
    context: typer.Context,
    filepaths: Annotated[
        list[Path],
        typer.Argument(
            parser=path_or_url,
            help="Snapshots, or one directory of them.",
            metavar="FILES|DIRECTORY",
        ),
    ],
    output_filepath: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=path_or_url,
            help="File to write; with --sweep a directory.",
        ),
    ],
    sigma_rel: Annotated[
        float | None,
        typer.Option(help="Relative width of a power-function average."),
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Decay of an EMA.")
    ] = None,
    half_life: Annotated[
        float | None, typer.Option(help="Half-life of an EMA, in --unit.")
    ] = None,
    unit: Annotated[
        Literal["steps", "epochs", "samples"],
        typer.Option(help="Unit of --half-life; steps are optimizer steps."),
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
            help="Several widths, FROM:TO:COUNT: writes a file sigma_<width> "
            "for each."
        ),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            help="Batches for each optimizer step, if not in the files."
        ),
    ] = None,
    max_residual: Annotated[
        float, typer.Option(help="Largest accepted residual.")
    ] = 0.1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the report, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Synthesize the average of another horizon from snapshots."""
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
            "dry_run": dry_run,
            "verbose": verbosity(as_json=as_json),
        }
        paths = _paths(filepaths)
        result: Any
        if sweep is None:
            result = _synthesize(paths, output_filepath, **target, **options)
        elif any(value is not None for value in target.values()):
            raise typer.BadParameter(
                "only one of --sweep, --sigma-rel, --decay and --half-life"
            )
        else:
            widths = _parse_widths(sweep)
            result = _sweep(paths, output_filepath, widths, **options)
        _show(result, as_json=as_json, dry_run=dry_run)


def _synthesize(
    paths: Sequence[Path],
    output: Path,
    *,
    dry_run: bool,
    overwrite: bool,
    verbose: str | int,
    **options: Any,
) -> "SynthesisPlan | SynthesisReport":
    from keras_wavg.files import synthesis
    from keras_wavg.files.paths import check_output

    if dry_run:
        check_output(output, overwrite=overwrite, paths=paths)
        return synthesis.plan_synthesis(paths, **options)
    return synthesis.synthesize(
        paths, output, overwrite=overwrite, verbose=verbose, **options
    )


def _sweep(
    paths: Sequence[Path],
    directory: Path,
    widths: Sequence[float],
    *,
    dry_run: bool,
    overwrite: bool,
    verbose: str | int,
    **options: Any,
) -> "list[SweepAverage]":
    from keras_wavg.files import synthesis

    plan = synthesis.plan_sweep(
        paths, directory, widths, overwrite=overwrite, **options
    )
    if dry_run:
        return plan
    return list(
        synthesis.run_sweep(paths, plan, overwrite=overwrite, verbose=verbose)
    )


def _paths(filepaths: Sequence[Path]) -> Sequence[Path]:
    if len(filepaths) == 1 and filepaths[0].is_dir():
        from keras_wavg.files.checkpoint_opener import checkpoints_in

        return checkpoints_in(filepaths[0])
    return filepaths


def _decay(
    decay: float | None,
    half_life: float | None,
    unit: str,
    sizes: tuple[float | None, int | None],
) -> float | None:
    if half_life is None:
        if unit != "steps" or any(sizes):
            raise typer.BadParameter("--unit needs --half-life")
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


def _show(result: Any, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        typer.echo(to_json(result))
    else:
        reports = result if isinstance(result, list) else [result]
        typer.echo("\n".join(map(str, reports)))
        if dry_run:
            typer.echo("dry run: nothing was written")
    if isinstance(result, list) and not any(made.path for made in result):
        raise typer.Exit(FAILED)


def _parse_widths(text: str) -> list[float]:
    import numpy

    from keras_wavg.profile import MAX_SIGMA_REL

    try:
        first, last, count = text.split(":")
        # No average is wider than the equal-weight mean.
        low, high = float(first), min(float(last), MAX_SIGMA_REL)
        widths: list[float] = numpy.linspace(low, high, int(count)).tolist()
    except ValueError as error:
        raise typer.BadParameter(f"--sweep {text}: FROM:TO:COUNT") from error
    if not widths:
        raise typer.BadParameter(f"--sweep {text}: COUNT must be at least 1")
    return widths
