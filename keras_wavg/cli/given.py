"""What is typed for `keras-wavg average`, as the library takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def chosen_of(
    paths: Sequence[Path],
    *,
    steps: str | None,
    metric: str,
    mode: str,
    **options: Any,
) -> Sequence[Path]:
    """The checkpoints, of those in a folder the ones that are asked for."""
    from keras_wavg.files.orbax.steps import all_steps
    from keras_wavg.files.remote import reached

    given = [name for name, value in options.items() if value is not None]
    if steps is not None:
        if given:
            raise typer.BadParameter(f"only one of --steps and --{given[0]}")
        return all_steps(paths, _steps_of(steps))
    with reached(paths[0]):
        is_folder = len(paths) == 1 and _is_folder(paths[0])
    if is_folder:
        if options["last"] is None and options["best"] is None:
            raise typer.BadParameter("a folder needs --last or --best")
        from keras_wavg.files.select import select_checkpoints

        selection = select_checkpoints(
            paths[0], metric=metric, mode=mode, **options
        )
        typer.echo(str(selection), err=True)
        return selection
    if given:
        raise typer.BadParameter(f"--{given[0]} needs one folder")
    return paths


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder of checkpoints, and not one of a step."""
    from keras_wavg.files.orbax.steps import is_step

    return path.is_dir() and not is_step(path)


def weights_of(text: str, count: int) -> list[float]:
    """The weights of checkpoints, by their numbers or the name of a rule."""
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


def share_of(process: int | None, of: int | None) -> tuple[int, int] | None:
    """Which of how many processes this is, or `None` if it is the only one."""
    if process is None and of is None:
        return None
    if process is None or of is None or process >= of:
        raise typer.BadParameter("--process K --of N, with K less than N")
    return process, of


def _steps_of(text: str) -> list[int]:
    try:
        return [int(step) for step in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--steps {text}: {error}") from error
