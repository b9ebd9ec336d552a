"""The command `keras-wavg average`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keras_wavg.cli.parsing import parse_process, parse_weights, select_paths
from keras_wavg.cli.terminal import (
    Json,
    path_or_url,
    readable_errors,
    to_json,
    verbosity,
)

if TYPE_CHECKING:
    from keras_wavg.files.average_report import AverageReport


def average(
    context: typer.Context,
    filepaths: Annotated[
        list[Path],
        typer.Argument(
            parser=path_or_url,
            help="Checkpoints, the oldest first, or one directory of them. "
            "Each is a file or an Orbax directory.",
            metavar="FILES|DIRECTORY",
        ),
    ],
    output_filepath: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=path_or_url,
            help="File to write: .weights.h5, .weights.json or .keras; for "
            "Orbax checkpoints also a directory.",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="Numbers such as 1,2,3, or a rule: uniform, ascending, "
            "ema:DECAY, or linear, cosine, 1-sqrt, which emulate a decay of "
            "the learning rate."
        ),
    ] = "uniform",
    normalize: Annotated[
        bool, typer.Option(help="Divide weights by their sum.")
    ] = True,
    steps: Annotated[
        str | None,
        typer.Option(help="Steps of each Orbax directory, such as 10,20."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(min=1, help="Select the latest from a directory."),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(min=1, help="Select the best from a directory."),
    ] = None,
    monitor: Annotated[
        str, typer.Option(help="Metric for --best.")
    ] = "val_loss",
    mode: Annotated[
        Literal["auto", "min", "max"],
        typer.Option(help="Whether a lower or a higher metric is better."),
    ] = "auto",
    until_epoch: Annotated[
        int | None, typer.Option(help="Latest epoch to select from.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="File names, as {epoch:02d}-{val_loss:.3f}.keras"),
    ] = None,
    csv_log: Annotated[
        Path | None, typer.Option(help="CSVLogger file with the metric.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            help="Require the same variables in all files, or average those "
            "that all have."
        ),
    ] = True,
    include: Annotated[
        str | None,
        typer.Option(
            help="Regular expression, searched in the path of each variable. "
            "Others are copied from the last file."
        ),
    ] = None,
    optimizer: Annotated[
        Literal["drop", "last"],
        typer.Option(help="last: copy its state from the last file."),
    ] = "drop",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    process: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Index of this process, if several average Orbax checkpoints "
            "together.",
        ),
    ] = None,
    process_count: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the report, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Average checkpoints into a new one."""
    with readable_errors(context):
        paths = select_paths(
            filepaths,
            steps=steps,
            last=last,
            best=best,
            monitor=monitor,
            mode=mode,
            until_epoch=until_epoch,
            pattern=pattern,
            csv_log=csv_log,
        )
        report = _report(
            paths,
            output_filepath,
            dry_run=dry_run,
            process=parse_process(process, process_count),
            verbose=verbosity(as_json=as_json),
            overwrite=overwrite,
            weights=parse_weights(weights, len(paths)),
            normalize=normalize,
            strict=strict,
            include=include,
            optimizer=optimizer,
        )
        typer.echo(to_json(report) if as_json else str(report))
        if dry_run and not as_json:
            typer.echo("dry run: nothing was written")


def _report(
    paths: Sequence[Path],
    output: Path,
    *,
    dry_run: bool,
    process: tuple[int, int] | None,
    verbose: str | int,
    overwrite: bool,
    **options: Any,
) -> "AverageReport":
    from keras_wavg.files.average import average_checkpoints
    from keras_wavg.files.average_report import dry_run_report
    from keras_wavg.files.open_plan import open_plan
    from keras_wavg.files.paths import check_output

    if not dry_run:
        return average_checkpoints(
            paths,
            output,
            process=process,
            verbose=verbose,
            overwrite=overwrite,
            **options,
        )
    check_output(output, overwrite=overwrite, paths=paths)
    with open_plan(paths, **options) as plan:
        return dry_run_report(plan, output, overwrite=overwrite)
