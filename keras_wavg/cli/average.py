"""`keras-wavg average`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keras_wavg.cli.given import chosen_of, share_of, weights_of
from keras_wavg.cli.terminal import (
    Json,
    place,
    progress_bar,
    readable_errors,
    to_json,
)

if TYPE_CHECKING:
    from keras_wavg.files.average_report import AverageReport


def average(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=place,
            help="Checkpoints, the oldest first, or one folder of them: files, "
            "or folders of Orbax.",
            metavar="FILES|FOLDER",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=place,
            help="The file to write: .weights.h5, .weights.json or .keras. Of "
            "folders of Orbax, it may be a folder.",
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
    steps: Annotated[
        str | None,
        typer.Option(help="Of folders of Orbax: which steps, such as 10,20."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(min=1, help="Of a folder: how many of the latest."),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(min=1, help="Of a folder: how many of the best."),
    ] = None,
    metric: Annotated[str, typer.Option(help="By which metric.")] = "val_loss",
    mode: Annotated[
        Literal["auto", "min", "max"],
        typer.Option(help="Which values are good."),
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
    include: Annotated[
        str | None,
        typer.Option(
            help="Average only variables whose path has this regular "
            "expression in it; the rest is the last file's."
        ),
    ] = None,
    optimizer: Annotated[
        Literal["drop", "last"],
        typer.Option(help="last: take over its state."),
    ] = "drop",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    process: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of folders of Orbax that several processes average together: "
            "the number of this one, from 0 on.",
        ),
    ] = None,
    of: Annotated[
        int | None, typer.Option(min=1, help="How many processes there are.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Average checkpoints into a new one."""
    with readable_errors(context):
        chosen = chosen_of(
            paths,
            steps=steps,
            last=last,
            best=best,
            metric=metric,
            mode=mode,
            until=until,
            pattern=pattern,
            log=log,
        )
        options: dict[str, Any] = {
            "weights": weights_of(weights, len(chosen)),
            "normalize": normalize,
            "strict": strict,
            "include": include,
            "optimizer": optimizer,
            "overwrite": overwrite,
        }
        share = share_of(process, of)
        if dry_run:
            report = _planned(chosen, output, **options)
        else:
            report = _averaged(
                chosen, output, quiet=as_json, process=share, **options
            )
        typer.echo(to_json(report) if as_json else str(report))
        if dry_run and not as_json:
            typer.echo("dry run: nothing was written")


def _averaged(
    paths: Sequence[Path], output: Path, *, quiet: bool, **options: Any
) -> "AverageReport":
    from keras_wavg.files.average import average_checkpoints

    with progress_bar("averaging", quiet=quiet) as progress:
        return average_checkpoints(paths, output, progress=progress, **options)


def _planned(
    paths: Sequence[Path], output: Path, *, overwrite: bool, **options: Any
) -> "AverageReport":
    from keras_wavg.files.paths import refuse_output
    from keras_wavg.files.planning import planned, planned_report

    refuse_output(output, overwrite=overwrite, paths=paths)
    with planned(paths, **options) as plan:
        return planned_report(plan, output, overwrite=overwrite)
