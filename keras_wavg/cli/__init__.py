"""The command `keras-wavg`: averages, inspects and compares saved weights.

Exit codes: 0 success (`diff`: the weights are equal); 1 `diff`: the weights
differ; 2 wrong usage; 3 any other error, in a value or a file; 130 Ctrl-C.
"""

from typing import Annotated

import typer

from keras_wavg import __version__
from keras_wavg.cli.average import average
from keras_wavg.cli.inspect import diff, inspect
from keras_wavg.cli.synthesize import synthesize

app = typer.Typer(
    help="Average saved Keras weights, without Keras.",
    epilog="Exit codes: 0 success (diff: equal weights), 1 diff: the weights "
    "differ, 2 wrong usage, 3 any other error, 130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (average, synthesize, inspect, diff):
    app.command()(command)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"keras-wavg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Average saved Keras weights, without Keras."""
