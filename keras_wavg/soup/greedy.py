"""A greedy soup: checkpoints are averaged as long as the score gains."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_wavg.files.checkpoint import SUFFIXES
from keras_wavg.files.paths import Paths, archive_like, checked, refuse_output
from keras_wavg.files.planning import planned
from keras_wavg.soup.candidates import Candidates, load_weights
from keras_wavg.soup.soup_report import SoupReport, Trial


def greedy_soup(
    paths: Paths,
    score: Callable[[Any], Any],
    output: str | os.PathLike[str],
    *,
    model: Any = None,
    bn_data: Any = None,
    mode: str = "max",
    overwrite: bool = False,
    verbose: int = 1,
) -> SoupReport:
    """Average those checkpoints that make the score of their average better.

    Each checkpoint is scored alone. Then, from the best one down, each is put
    into the soup, which is their equal-weight mean, and stays in it if the
    soup's score does not fall. What is written is what was scored, so its score
    is never worse than that of the best single one. Choose by data that are
    neither those of training nor those of the final test.

    Each candidate is averaged anew, by `average_checkpoints`, from files that
    the system keeps in memory as far as there is room: nothing is read from
    disk twice then.

    Args:
        paths: Sequence of checkpoints, see `average_checkpoints`.
        score: Function from the path of a checkpoint to a number. With `model`,
            from the model that holds the weights.
        output: The file to write, see `average_checkpoints`.
        model: A built Keras model to load the weights in, or `None`. In the end
            it holds the soup; after an error, what it held before. Its
            optimizer is left alone; averages of callbacks begin anew.
        bn_data: What `update_bn` takes, to measure the statistics of
            `BatchNormalization` for each candidate, which needs `model`.
            Defaults to `None`: they are averaged like weights.
        mode: `"max"` if a higher score is better, `"min"` if a lower one is.
            Defaults to `"max"`.
        overwrite: Boolean, whether an existing file may be replaced. Defaults
            to `False`.
        verbose: 1 to print each decision, or 0. Defaults to 1.

    Example:

    >>> import tempfile, keras, numpy
    >>> from keras_wavg import greedy_soup
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [f"{folder}/{k}.weights.h5" for k in range(3)]
    ...     for path, value in zip(paths, (1.0, 5.0, 9.0)):
    ...         model.set_weights([numpy.full((1, 1), value)])
    ...         model.save_weights(path)
    ...     report = greedy_soup(
    ...         paths,
    ...         lambda model: abs(model.get_weights()[0].item() - 6.5),
    ...         f"{folder}/soup.weights.h5",
    ...         model=model,
    ...         mode="min",
    ...         verbose=0,
    ...     )
    >>> [path.name for path in report.members], report.score
    (['1.weights.h5', '2.weights.h5'], 0.5)

    Returns:
        A `SoupReport`.

    Raises:
        ValueError: If an argument is not one of these, if `score` does not
            return a number, or whatever `average_checkpoints` refuses.
        FileExistsError: If there is a file and not `overwrite`.

    References:
        [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482), algorithm 1
    """
    given = checked(paths)
    if mode not in {"min", "max"}:
        raise ValueError(
            f"`mode` must be 'min' or 'max'. Received: mode={mode!r}"
        )
    if bn_data is not None and model is None:
        raise ValueError(
            "`bn_data` needs `model`, whose statistics are measured. Received: "
            "model=None"
        )
    target = Path(output)
    if model is not None:
        _require_file(target)
    _refuse_early(given, target, overwrite=overwrite)
    tell = Console(soft_wrap=True, quiet=not verbose, markup=False).print
    # Beside the output, where there must be room for one more anyway.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        suffix = ".keras" if target.suffix == ".keras" else ".weights.h5"
        kept = Path(folder, f"kept{suffix}")
        candidates = Candidates(kept, score, model, bn_data, mode)
        with _given_back(model):
            trials = _trials(candidates, given, tell)
        members = [trial.path for trial in trials if trial.taken]
        average = candidates.write(members, target, overwrite=overwrite)
    if model is not None:
        load_weights(model, target)
    report = SoupReport(tuple(trials), candidates.best, average)
    tell(str(report))
    return report


def _trials(
    candidates: Candidates, paths: Sequence[Path], tell: Callable[[str], None]
) -> list[Trial]:
    alone = []
    for path in paths:
        alone.append(candidates.score([path]))
        tell(f"{path} alone: {alone[-1]:.6g}")
        if candidates.rank(alone[-1]) < candidates.rank(candidates.best):
            candidates.keep(alone[-1])
    if math.isnan(candidates.best):
        raise ValueError(
            "`score` must return a number for at least one checkpoint. "
            "Received: NaN for each"
        )
    first, *others = sorted(
        range(len(paths)), key=lambda i: candidates.rank(alone[i])
    )
    members = [paths[first]]
    trials = [Trial(paths[first], alone[first], alone[first], taken=True)]
    for i in others:
        together = candidates.score([*members, paths[i]])
        taken = candidates.rank(together) <= candidates.rank(candidates.best)
        tell(
            f"soup with {paths[i]}: {together:.6g}"
            + (", taken" if taken else "")
        )
        if taken:
            members.append(paths[i])
            candidates.keep(together)
        trials.append(Trial(paths[i], alone[i], together, taken))
    return trials


def _refuse_early(
    paths: Sequence[Path], output: Path, *, overwrite: bool
) -> None:
    # Before hours of scoring, and not after.
    refuse_output(output, overwrite=overwrite, paths=paths)
    others = [path for path in paths if path.suffix != ".keras"]
    if output.suffix == ".keras" and others:
        raise ValueError(
            "For a `.keras` file as `output`, all of `paths` must be `.keras` "
            f"files. Received: output={str(output)!r} and {others[0]}"
        )
    with planned(paths) as plan:
        archive_like(plan, output)


def _require_file(output: Path) -> None:
    """Require a file where Keras itself writes or loads the soup."""
    if not output.name.endswith(SUFFIXES):
        raise ValueError(
            "With `model`, `output` must be a file. Received: "
            f"output={str(output)!r}. Pass a path that ends in "
            "'.weights.h5' or '.keras'."
        )


def _given_back(model: Any) -> contextlib.AbstractContextManager[None]:
    if model is None:
        return contextlib.nullcontext()
    # Without a model, neither Keras nor a backend is needed.
    from keras_wavg.ensemble import weights_given_back  # noqa: PLC0415

    return weights_given_back(model)
