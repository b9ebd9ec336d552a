"""Averages saved weights into a new file."""

import os
from collections.abc import Sequence
from typing import Any

from keras_wavg.arguments import Include
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.execution import execute
from keras_wavg.files.multi_process import execute_part
from keras_wavg.files.open_plan import open_plan
from keras_wavg.files.paths import Paths, check_output, checkpoint_paths
from keras_wavg.files.progress_bar import progress_bar
from keras_wavg.files.remote import as_path
from keras_wavg.files.streaming import Process


def average_checkpoints(
    filepaths: Paths,
    output_filepath: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    strict: bool = True,
    include: Include = None,
    overwrite: bool = False,
    optimizer: str = "drop",
    verbose: Any = "auto",
    process: Process | None = None,
) -> AverageReport:
    """Average saved weights into a new file.

    Variables are summed in float64, `output = sum(w * x) / sum(w)`, and rounded
    once to the dtype that they are stored in. So the order of the files does
    not matter, and the mean of copies equals them bit for bit. Files are read
    in blocks, never as a whole, and Keras is not imported.

    Args:
        filepaths: Sequence of strings or paths, checkpoints of models of
            one architecture. Either files, each a `.weights.h5`, a sharded
            `.weights.json` or a `.keras`. Or Orbax directories, as
            `keras.callbacks.OrbaxCheckpoint` writes them, which need
            `tensorstore`: of one step, or of all steps, of which the latest is
            averaged. A string may be a URL.
        output_filepath: String or path-like, the file to write, in any of
            these formats. A `.keras` file gets the config of the last `.keras`
            file in `filepaths`. For Orbax checkpoints it may be a directory:
            that of a step if its name is a number, or else the parent of one,
            which gets the step of the last checkpoint.
        steps: Sequence of integers, the steps to average of each Orbax
            directory. Defaults to `None`, the latest.
        weights: Sequence of floats, one for each checkpoint, such as those of
            `keras_wavg.coefficients`. Defaults to `None`, equal weights.
        normalize: Boolean, whether `weights` are divided by their sum. Defaults
            to `True`.
        strict: Boolean, whether all checkpoints must have the same variables.
            If `False`, the variables that all share are averaged, and the
            others are copied from the last checkpoint. Defaults to `True`.
        include: String or function, which variables to average: a regular
            expression that is searched in the path of each variable (see
            `keras_wavg.inspect_checkpoint`), or a function from a path to a
            boolean. Excluded variables are copied from the last checkpoint.
            Defaults to `None`, all variables.
        overwrite: Boolean, whether to replace an existing file. Defaults to
            `False`.
        optimizer: String, `"drop"`, or `"last"` to copy the optimizer's state
            from the last checkpoint. It is never averaged. Defaults to
            `"drop"`.
        verbose: `"auto"`, 0 or 1, whether to show a progress bar on standard
            error. `"auto"` shows it on a terminal. Defaults to `"auto"`.
        process: Tuple of two integers, the index of this process and the number
            of processes, such as `(jax.process_index(), jax.process_count())`.
            Then several processes share the work of averaging Orbax
            checkpoints, not necessarily at the same time, and the last one to
            finish writes the output. Defaults to `None`, a single process.

    Example:

    >>> import tempfile, keras, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for epoch in (1, 2):
    ...         model.save_weights(f"{directory}/{epoch}.weights.h5")
    ...     report = keras_wavg.average_checkpoints(
    ...         [f"{directory}/1.weights.h5", f"{directory}/2.weights.h5"],
    ...         f"{directory}/mean.weights.h5",
    ...     )
    ...     model.load_weights(f"{directory}/mean.weights.h5")
    >>> report.averaged
    ('layers/dense/vars/0', 'layers/dense/vars/1')

    Returns:
        An `AverageReport`: which variables were averaged, copied and dropped,
        the coefficients and the checksums. The output contains the coefficients
        and the checksums too.

    Raises:
        ValueError: If an argument is invalid; if a file is damaged or was not
            written by Keras; if variables do not match; if integer variables
            that are neither counts nor seeds differ; if a variable is NaN or
            infinite. Nothing is written then.
        FileExistsError: If the output exists and `overwrite` is `False`.
        OSError: If a file cannot be read or written.
        ImportError: If `tensorstore` is missing for an Orbax directory, or
            `universal_pathlib` for a URL.
    """
    output = as_path(output_filepath)
    paths = checkpoint_paths(filepaths, steps)
    check_output(output, overwrite=overwrite, paths=paths)
    with (
        open_plan(
            paths,
            weights=weights,
            normalize=normalize,
            strict=strict,
            include=include,
            optimizer=optimizer,
        ) as plan,
        progress_bar("averaging", verbose) as progress,
    ):
        options: dict[str, Any] = {
            "strict": strict,
            "overwrite": overwrite,
            "progress": progress,
        }
        if process is None:
            return execute(plan, output, **options)
        return execute_part(plan, output, process, **options)
