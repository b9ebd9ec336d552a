"""`keras-wavg synthesize`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy
import typer

from keras_wavg.cli.terminal import FAILED, readable_errors
from keras_wavg.files import synthesis
from keras_wavg.files.checkpoint import checkpoints_in
from keras_wavg.profile import WIDEST


def synthesize(
    folder: Annotated[
        Path, typer.Argument(help="A folder of snapshots.", metavar="FOLDER")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file to write; for a sweep, a folder."
        ),
    ],
    sigma_rel: Annotated[
        float | None, typer.Option(help="Width of a power-function average.")
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Decay of an EMA instead.")
    ] = None,
    half_life: Annotated[
        float | None, typer.Option(help="Or its half-life, in steps.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Many widths: FROM:TO:COUNT, a file sigma_<width> for each "
            "that can be made."
        ),
    ] = None,
    max_residual: Annotated[
        float, typer.Option(help="The largest residual that is accepted.")
    ] = 0.1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.")
    ] = False,
) -> None:
    """Make the average of any horizon from snapshots of a training."""
    with readable_errors():
        snapshots = checkpoints_in(folder)
        options: dict[str, Any] = {
            "max_residual": max_residual,
            "overwrite": overwrite,
        }
        target: dict[str, Any] = {
            "sigma_rel": sigma_rel,
            "decay": decay,
            "half_life": half_life,
        }
        if sweep is None:
            report = synthesis.synthesize(
                snapshots, output, **target, **options
            )
            typer.echo(str(report))
        elif any(value is not None for value in target.values()):
            raise typer.BadParameter("--sweep has widths of its own")
        else:
            _sweep(snapshots, _widths(sweep), output, options)


def _sweep(
    snapshots: Sequence[Path],
    widths: Sequence[float],
    folder: Path,
    options: Mapping[str, Any],
) -> None:
    all_made = synthesis.made_widths(snapshots, widths, folder, **options)
    paths = []
    for made in all_made:
        typer.echo(str(made))
        paths.append(made.path)
    if not any(paths):
        raise typer.Exit(FAILED)


def _widths(text: str) -> list[float]:
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
