"""Parses the options of `keras-wavg average`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def select_paths(
    paths: Sequence[Path],
    *,
    steps: str | None,
    monitor: str,
    mode: str,
    **options: Any,
) -> Sequence[Path]:
    """The checkpoints to average, selected if `paths` is one directory."""
    from keras_wavg.files.orbax.steps import is_step, select_steps
    from keras_wavg.files.remote import network_errors_as_os_errors

    names = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if value is not None
    ]
    if steps is not None:
        if names:
            raise typer.BadParameter(f"only one of --steps and {names[0]}")
        return select_steps(paths, _parse_steps(steps))
    with network_errors_as_os_errors(paths[0]):
        is_directory = (
            len(paths) == 1 and paths[0].is_dir() and not is_step(paths[0])
        )
    if is_directory:
        if options["last"] is None and options["best"] is None:
            raise typer.BadParameter("a directory needs --last or --best")
        from keras_wavg.files.select import select_checkpoints

        selection = select_checkpoints(
            paths[0], monitor=monitor, mode=mode, **options
        )
        typer.echo(str(selection), err=True)
        return selection
    if names:
        raise typer.BadParameter(f"{names[0]} needs one directory")
    return paths


def parse_weights(text: str, count: int) -> list[float]:
    """Parse `--weights`: numbers, or the name of a rule."""
    from keras_wavg.files import coefficients

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


def parse_process(
    process: int | None, process_count: int | None
) -> tuple[int, int] | None:
    """Combine `--process` and `--process-count`, or `None` without them."""
    if process is None and process_count is None:
        return None
    if process is None or process_count is None or process >= process_count:
        raise typer.BadParameter(
            "--process K --process-count N, with K less than N"
        )
    return process, process_count


def _parse_steps(text: str) -> list[int]:
    try:
        return [int(step) for step in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--steps {text}: {error}") from error
