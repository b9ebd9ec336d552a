"""What the commands share: how they end, and what they print."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import rich.console
import typer
from rich import progress as bars

from keras_wavg.files.streaming import Progress

DIFFERENT, FAILED = 1, 3
"""Exit codes; 2 is typer's, for wrong usage, 3 for all else that is refused."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Errors of the library end the command in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(FAILED) from error


@contextlib.contextmanager
def progress_bar(verb: str, *, quiet: bool) -> Iterator[Progress]:
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


def to_json(found: Any) -> str:
    """What was found, a dataclass, as one line."""
    text = json.dumps(asdict(found), default=str)
    # JSON has no NaN and no infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
