"""`keras-wavg inspect` and `keras-wavg diff`."""

from pathlib import Path
from typing import Annotated

import typer

from keras_wavg.cli.terminal import (
    DIFFERENT,
    Json,
    place,
    progress_bar,
    readable_errors,
    to_json,
)


def inspect(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(parser=place, metavar="FILE", help="A checkpoint."),
    ],
    as_json: Json = False,
) -> None:
    """Show what is in a checkpoint."""
    from keras_wavg.files.inspection import inspect_checkpoint

    with readable_errors(context):
        with progress_bar("reading", quiet=as_json) as progress:
            found = inspect_checkpoint(path, progress)
        typer.echo(to_json(found) if as_json else str(found))


def diff(
    context: typer.Context,
    one: Annotated[
        Path, typer.Argument(parser=place, metavar="A", help="A checkpoint.")
    ],
    two: Annotated[
        Path, typer.Argument(parser=place, metavar="B", help="Another.")
    ],
    as_json: Json = False,
) -> None:
    """Compare the weights of two checkpoints."""
    from keras_wavg.files.difference import diff_checkpoints

    with readable_errors(context):
        with progress_bar("comparing", quiet=as_json) as progress:
            found = diff_checkpoints(one, two, progress)
        typer.echo(to_json(found) if as_json else str(found))
    if not found.is_none:
        raise typer.Exit(DIFFERENT)
