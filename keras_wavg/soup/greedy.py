"""Greedy soups: checkpoints are added as long as the score does not fall."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_wavg import arguments
from keras_wavg.files.checkpoint import SUFFIXES
from keras_wavg.files.error_text import printable
from keras_wavg.files.open_plan import open_plan
from keras_wavg.files.paths import (
    Paths,
    check_output,
    checkpoint_paths,
    config_archive,
)
from keras_wavg.soup.candidates import Candidates, load_weights
from keras_wavg.soup.soup_report import SoupReport, Trial


def greedy_soup(
    filepaths: Paths,
    score: Callable[[Any], Any],
    output_filepath: str | os.PathLike[str],
    *,
    model: Any = None,
    batch_norm_data: Any = None,
    batch_norm_steps: int | None = None,
    mode: str = "auto",
    overwrite: bool = False,
    verbose: int = 1,
) -> SoupReport:
    """Average those checkpoints that improve the score of their average.

    Each checkpoint is scored alone. Then, starting with the best one, each is
    added to the soup, which is their equal-weight mean, if the score of the
    soup does not fall. The output is the soup that was scored, so its score is
    at least that of the best checkpoint. Score on data that are used neither
    for training nor for the final test.

    Each candidate is averaged from the files. The operating system caches them
    as far as memory allows, so most are read from disk only once.

    Args:
        filepaths: Sequence of strings or paths, the checkpoints. See
            `average_checkpoints`.
        score: Function from the path of a checkpoint to a number. With `model`,
            from the model with the weights loaded.
        output_filepath: String or path-like, the file to write. See
            `average_checkpoints`.
        model: A built Keras model to load the weights into. It ends up with the
            weights of the soup, or with its previous weights after an error.
            Its optimizer is not changed; averages of callbacks restart.
            Defaults to `None`.
        batch_norm_data: Data as for `update_bn`, to measure the moving
            statistics of `BatchNormalization` for each candidate. Requires
            `model`. Defaults to `None`: they are averaged like weights.
        batch_norm_steps: Positive integer, the number of batches of
            `batch_norm_data` to use. Required for endless data. Defaults to
            `None`, all.
        mode: String, `"max"` if a higher score is better, `"min"` if a lower
            score is better, as for a loss. `"auto"` is `"max"`. Defaults to
            `"auto"`.
        overwrite: Boolean, whether to replace an existing file. Defaults to
            `False`.
        verbose: 0 or 1, whether to print each decision. Defaults to 1.

    Example:

    >>> import tempfile, keras, numpy
    >>> from keras_wavg import greedy_soup
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [f"{directory}/{k}.weights.h5" for k in range(3)]
    ...     for path, value in zip(paths, (1.0, 5.0, 9.0)):
    ...         model.set_weights([numpy.full((1, 1), value)])
    ...         model.save_weights(path)
    ...     report = greedy_soup(
    ...         paths,
    ...         lambda model: abs(model.get_weights()[0].item() - 6.5),
    ...         f"{directory}/soup.weights.h5",
    ...         model=model,
    ...         mode="min",
    ...         verbose=0,
    ...     )
    >>> [path.name for path in report.members], report.score
    (['1.weights.h5', '2.weights.h5'], 0.5)

    Returns:
        A `SoupReport`.

    Raises:
        ValueError: If an argument is invalid, if `score` does not return a
            number, or as `average_checkpoints`.
        FileExistsError: If the output exists and `overwrite` is `False`.

    References:
        [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482), algorithm 1
    """
    paths, output = checkpoint_paths(filepaths), Path(output_filepath)
    # A score has no name to infer the direction from.
    is_higher_better = arguments.is_higher_better(
        "score", "max" if mode == "auto" else mode
    )
    _check_batch_norm(model, batch_norm_data, batch_norm_steps)
    _check_output(paths, output, model, overwrite=overwrite)
    # In the directory of the output, as that must have space for a candidate.
    with tempfile.TemporaryDirectory(
        dir=output.parent, prefix="."
    ) as directory:
        suffix = ".keras" if output.suffix == ".keras" else ".weights.h5"
        candidates = Candidates(
            Path(directory, f"best{suffix}"),
            score,
            model,
            batch_norm_data,
            batch_norm_steps,
            is_higher_better=is_higher_better,
        )
        with _restored(model):
            trials = _trials(candidates, paths, _log if verbose else _ignore)
        members = [trial.path for trial in trials if trial.added]
        average = candidates.write(members, output, overwrite=overwrite)
    if model is not None:
        load_weights(model, output)
    report = SoupReport(tuple(trials), candidates.best_score, average)
    if verbose:
        _log(str(report))
    return report


def _trials(
    candidates: Candidates, paths: Sequence[Path], log: Callable[[str], None]
) -> list[Trial]:
    scores = []
    for path in paths:
        scores.append(candidates.score([path]))
        log(f"{printable(str(path))}: {scores[-1]:.6g}")
        if candidates.rank(scores[-1]) < candidates.rank(candidates.best_score):
            candidates.save_best(scores[-1])
    if math.isnan(candidates.best_score):
        raise ValueError(
            "`score` must return a number for at least one checkpoint. "
            "Received: NaN for each"
        )
    first, *others = sorted(
        range(len(paths)), key=lambda i: candidates.rank(scores[i])
    )
    members = [paths[first]]
    trials = [Trial(paths[first], scores[first], scores[first], added=True)]
    for i in others:
        soup_score = candidates.score([*members, paths[i]])
        best_rank = candidates.rank(candidates.best_score)
        added = candidates.rank(soup_score) <= best_rank
        name = printable(str(paths[i]))
        log(f"soup with {name}: {soup_score:.6g}{', added' * added}")
        if added:
            members.append(paths[i])
            candidates.save_best(soup_score)
        trials.append(Trial(paths[i], scores[i], soup_score, added))
    return trials


def _log(line: str) -> None:
    print(line)  # noqa: T201


def _ignore(line: str) -> None:
    pass


def _check_batch_norm(model: Any, data: Any, steps: int | None) -> None:
    if data is not None and model is None:
        raise ValueError(
            "`batch_norm_data` requires `model`, whose statistics are measured."
            " Received: model=None"
        )
    arguments.batch_norm_steps(data, steps)


def _check_output(
    paths: Sequence[Path], output: Path, model: Any, *, overwrite: bool
) -> None:
    """Refuse an output that cannot be written, before hours of scoring."""
    if model is not None and not output.name.endswith(SUFFIXES):
        raise ValueError(
            "With `model`, `output_filepath` must be a file. Received: "
            f"output_filepath={str(output)!r}. Pass a path that ends in "
            "'.weights.h5' or '.keras'."
        )
    check_output(output, overwrite=overwrite, paths=paths)
    others = [path for path in paths if path.suffix != ".keras"]
    if output.suffix == ".keras" and others:
        raise ValueError(
            "For a `.keras` file as `output_filepath`, all `filepaths` must be "
            f"`.keras` files. Received: output_filepath={str(output)!r} and "
            f"{others[0]}"
        )
    with open_plan(paths) as plan:
        config_archive(plan, output)


def _restored(model: Any) -> contextlib.AbstractContextManager[None]:
    """Context after which the model has its previous weights, if any."""
    if model is None:
        return contextlib.nullcontext()
    # Without a model, neither Keras nor a backend is needed.
    from keras_wavg.ensemble import weights_restored  # noqa: PLC0415

    return weights_restored(model)
