"""The commands `keras-wavg inspect` and `keras-wavg diff`."""

from pathlib import Path
from typing import Annotated

import typer

from keras_wavg.cli.terminal import (
    DIFFERENT,
    Json,
    path_or_url,
    readable_errors,
    to_json,
    verbosity,
)


def inspect(
    context: typer.Context,
    filepath: Annotated[
        Path,
        typer.Argument(parser=path_or_url, metavar="FILE", help="Checkpoint."),
    ],
    as_json: Json = False,
) -> None:
    """Show the contents of a checkpoint."""
    from keras_wavg.files.inspection import inspect_checkpoint

    with readable_errors(context):
        found = inspect_checkpoint(filepath, verbose=verbosity(as_json=as_json))
        typer.echo(to_json(found) if as_json else str(found))


def diff(
    context: typer.Context,
    filepath: Annotated[
        Path,
        typer.Argument(parser=path_or_url, metavar="A", help="Checkpoint."),
    ],
    other_filepath: Annotated[
        Path,
        typer.Argument(
            parser=path_or_url, metavar="B", help="Checkpoint to compare with."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Compare the weights of two checkpoints."""
    from keras_wavg.files.difference import diff_checkpoints

    with readable_errors(context):
        found = diff_checkpoints(
            filepath, other_filepath, verbose=verbosity(as_json=as_json)
        )
        typer.echo(to_json(found) if as_json else str(found))
    if not found.weights_equal:
        raise typer.Exit(DIFFERENT)
