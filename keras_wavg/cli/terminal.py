"""What the commands share: how they end, and what they print."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keras_wavg.cli.wording import as_typed

if TYPE_CHECKING:
    from keras_wavg.files.streaming import Progress

DIFFERENT, FAILED = 1, 3
"""Exit codes; 2 is typer's, for wrong usage, 3 for all else that is refused."""


def place(text: str) -> Path:
    """A path, or a URL, as it is typed."""
    from keras_wavg.files.remote import located

    try:
        return located(text)
    except ImportError as error:
        raise typer.BadParameter(str(error)) from error


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@contextlib.contextmanager
def readable_errors(context: typer.Context) -> Iterator[None]:
    """Errors of the library end the command in one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = as_typed(" ".join(str(error).split()), _typed(context))
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(FAILED) from error


def _typed(context: typer.Context) -> dict[str, str]:
    """What is typed for the arguments of a command, and of the library."""
    typed = {
        parameter.name: parameter.metavar
        if parameter.param_type_name == "argument" and parameter.metavar
        else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
    }
    files = typed.get("paths") or typed.get("folder", "")
    return dict.fromkeys(("paths", "folder", "snapshots"), files) | typed


@contextlib.contextmanager
def progress_bar(verb: str, *, quiet: bool) -> "Iterator[Progress | None]":
    """A bar with bytes and their rate, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(verb, total=None)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield progress


def _plain(value: Any) -> Any:
    """What JSON has for a path or an array."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def to_json(found: Any) -> str:
    """What was found, a dataclass or a list of them, as one line."""
    plain = [*map(asdict, found)] if isinstance(found, list) else asdict(found)
    text = json.dumps(plain, default=_plain)
    # JSON has no NaN and no infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
