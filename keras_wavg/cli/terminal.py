"""What the commands have in common: exit codes, errors and JSON."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_wavg.cli.option_names import with_option_names

DIFFERENT, FAILED = 1, 3
"""Exit codes. typer exits with 2 after wrong usage."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def path_or_url(text: str) -> Path:
    """Parse an argument that is a path or a URL."""
    from keras_wavg.files.remote import as_path

    try:
        return as_path(text)
    except ImportError as error:
        raise typer.BadParameter(str(error)) from error


@contextlib.contextmanager
def readable_errors(context: typer.Context) -> Iterator[None]:
    """Context in which errors of the library end the command with one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        line = " ".join(str(error).split())
        line = with_option_names(line, _option_names(context))
        typer.echo(f"error: {line}", err=True)
        raise typer.Exit(FAILED) from error


def _option_names(context: typer.Context) -> dict[str, str]:
    """The option, or the placeholder, for each argument of the library."""
    names = {
        parameter.name: parameter.metavar
        if parameter.param_type_name == "argument" and parameter.metavar
        else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
    }
    if "filepaths" in names:
        names["directory"] = names["filepaths"]
        names["output_dir"] = names["output_filepath"]
    return names


def verbosity(*, as_json: bool) -> str | int:
    """The argument `verbose` of the library."""
    return 0 if as_json else "auto"


def to_json(result: Any) -> str:
    """Format a dataclass, or a list of them, as one line of JSON."""
    plain = (
        [*map(asdict, result)] if isinstance(result, list) else asdict(result)
    )
    text = json.dumps(plain, default=_json_value)
    # JSON has neither NaN nor infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))


def _json_value(value: Any) -> Any:
    """A list for an array, a string for a path."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
