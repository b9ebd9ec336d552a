"""The command `keras-wavg`: saved weights averaged, inspected and compared.

Exit codes: 0 done (`diff`: the weights are the same); 1 `diff` found that they
are not; 2 wrong usage; 3 a file cannot be read, averaged or written.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy
import rich.console
import typer
from rich import progress as bars

from keras_wavg.files import coefficients, synthesis
from keras_wavg.files.average import (
    average_checkpoints,
    planned,
    planned_report,
    refuse_output,
)
from keras_wavg.files.checkpoint import checkpoints_in
from keras_wavg.files.inspection import diff_checkpoints, inspect_checkpoint
from keras_wavg.files.select import select_checkpoints
from keras_wavg.files.streaming import Progress
from keras_wavg.profile import WIDEST

_DIFFERENT, _FAILED = 1, 3

app = typer.Typer(
    help="Average saved Keras weights, without Keras.",
    epilog="Exit codes: 0 done (diff: same weights), 1 diff: other weights, "
    "2 wrong usage, 3 a file cannot be read, averaged or written.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def average(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints, the oldest first, or one folder of them.",
            metavar="FILES|FOLDER",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The file to write: .weights.h5, .weights.json or .keras.",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="Numbers such as 1,2,3; or uniform, ascending, ema:DECAY, "
            "linear, cosine, 1-sqrt (a decay of the learning rate)."
        ),
    ] = "uniform",
    normalize: Annotated[
        bool, typer.Option(help="Divide weights by their sum.")
    ] = True,
    last: Annotated[
        int | None, typer.Option(help="Of a folder: how many of the latest.")
    ] = None,
    best: Annotated[
        int | None, typer.Option(help="Of a folder: how many of the best.")
    ] = None,
    metric: Annotated[str, typer.Option(help="By which metric.")] = "val_loss",
    mode: Annotated[
        str, typer.Option(help="auto, min or max: which values are good.")
    ] = "auto",
    until: Annotated[
        int | None, typer.Option(help="The latest epoch that counts.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="How files are named: {epoch:02d}-{val_loss:.3f}.keras"
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="CSVLogger file with the metric.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            help="Refuse files with other variables, or average what all share."
        ),
    ] = True,
    optimizer: Annotated[
        str, typer.Option(help="drop, or last: take over its state.")
    ] = "drop",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Average checkpoints into a new one."""
    with _readable_errors():
        chosen = _chosen(
            paths,
            last=last,
            best=best,
            metric=metric,
            mode=mode,
            until=until,
            pattern=pattern,
            log=log,
        )
        options: dict[str, Any] = {
            "weights": _weights(weights, len(chosen)),
            "normalize": normalize,
            "strict": strict,
            "optimizer": optimizer,
        }
        if dry_run:
            refuse_output(output, overwrite=overwrite)
            with planned(chosen, **options) as plan:
                report = planned_report(plan, output)
        else:
            with _bar("averaging", quiet=as_json) as progress:
                report = average_checkpoints(
                    chosen,
                    output,
                    overwrite=overwrite,
                    progress=progress,
                    **options,
                )
        typer.echo(report.to_json() if as_json else str(report))
        if dry_run and not as_json:
            typer.echo("dry run: nothing was written")


@app.command()
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
    with _readable_errors():
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


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint.")],
    as_json: Json = False,
) -> None:
    """Show what is in a checkpoint."""
    with _readable_errors():
        with _bar("reading", quiet=as_json) as progress:
            found = inspect_checkpoint(path, progress)
        typer.echo(_json(found) if as_json else str(found))


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    two: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: Json = False,
) -> None:
    """Compare the weights of two checkpoints."""
    with _readable_errors():
        with _bar("comparing", quiet=as_json) as progress:
            found = diff_checkpoints(one, two, progress)
        typer.echo(_json(found) if as_json else str(found))
    if not found.is_none:
        raise typer.Exit(_DIFFERENT)


def _chosen(paths: Sequence[Path], **options: Any) -> Sequence[Path]:
    is_to_select = options["last"] is not None or options["best"] is not None
    if len(paths) == 1 and paths[0].is_dir():
        if not is_to_select:
            raise typer.BadParameter("a folder needs --last or --best")
        selection = select_checkpoints(paths[0], **options)
        typer.echo(str(selection), err=True)
        return selection
    if is_to_select:
        raise typer.BadParameter("--last and --best need one folder")
    return paths


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
        raise typer.Exit(_FAILED)


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


def _weights(text: str, count: int) -> list[float]:
    name, _, argument = text.partition(":")
    try:
        if name == "uniform":
            return coefficients.uniform(count)
        if name == "ascending":
            return coefficients.ascending(count)
        if name == "ema":
            return coefficients.ema(count, float(argument))
        if name in coefficients.DECAYS:
            return coefficients.decay_emulation(count, name)
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--weights {text}: {error}") from error


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(_FAILED) from error


@contextlib.contextmanager
def _bar(verb: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar with bytes and their rate, on a terminal."""
    console = rich.console.Console(stderr=True, quiet=quiet)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with bars.Progress(*columns, console=console, disable=hidden) as shown:
        task = shown.add_task(verb, total=None)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield progress


def _json(found: Any) -> str:
    text = json.dumps(asdict(found), default=str)
    # JSON has no NaN and no infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
