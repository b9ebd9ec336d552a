"""The progress bar of the functions for saved weights."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from keras_wavg.files.streaming import Progress


@contextlib.contextmanager
def progress_bar(action: str, verbose: Any) -> Iterator[Progress | None]:
    """Context with a progress bar on standard error.

    Args:
        action: String, shown before the bar.
        verbose: `"auto"` for a bar if standard error is a terminal, 1 for a
            bar, 0 for none.

    Yields:
        A `Progress`, or `None` without a bar.

    Raises:
        ValueError: If `verbose` is not one of these.
    """
    if verbose not in {"auto", 0, 1}:
        raise ValueError(
            f"`verbose` must be 'auto', 0 or 1. Received: verbose={verbose!r}"
        )
    if not (sys.stderr.isatty() if verbose == "auto" else verbose):
        yield None
        return
    # Importing rich takes longer than averaging small files.
    from rich import progress  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(action, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
