"""The mean of saved weights, streamed from file to file."""

import os
from collections.abc import Sequence

from keras_wavg.arguments import Include
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.execution import execute
from keras_wavg.files.paths import Paths, checked, refuse_output
from keras_wavg.files.planning import planned
from keras_wavg.files.remote import located
from keras_wavg.files.sharing import execute_share
from keras_wavg.files.streaming import Progress, Share


def average_checkpoints(
    paths: Paths,
    output: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    strict: bool = True,
    include: Include = None,
    overwrite: bool = False,
    optimizer: str = "drop",
    progress: Progress | None = None,
    process: Share | None = None,
) -> AverageReport:
    """Average saved weights into a new file.

    Variables are summed in float64, `output = sum(w * x) / sum(w)`, and rounded
    once to the type that they are stored in, so the order of the files does not
    matter and the mean of copies is the original, bit for bit. Neither Keras
    nor the whole of any file is loaded.

    Args:
        paths: Sequence of files, each a `.weights.h5`, a sharded
            `.weights.json` or a `.keras`, of models of one architecture. Or
            sequence of folders of Orbax, as `keras.callbacks.OrbaxCheckpoint`
            writes them: of a step, or of all steps, of which the latest is
            taken. They need `tensorstore`. Each may be a URL, as a string.
        output: The file to write, in any of these formats. A `.keras` file
            takes its config from the last `.keras` among `paths`. For folders
            of Orbax, the folder to write: that of a step, if its name is a
            number, or else one that gets the step of the last of `paths`.
        steps: Sequence of integers, the steps of each folder of Orbax. Defaults
            to `None`.
        weights: Sequence of floats, one for each of `paths`, or `None` for
            equal ones. See `keras_wavg.coefficients`. Defaults to `None`.
        normalize: Boolean, whether `weights` are divided by their sum. Defaults
            to `True`.
        strict: Boolean, whether all files must have the same variables. If not,
            what all share is averaged, and the rest is taken from the last
            file. Defaults to `True`.
        include: A regular expression, searched in the path of each variable,
            as `keras_wavg.inspect_checkpoint` shows it, or a function from a
            path to a boolean. What is left out is taken from the last file.
            Defaults to `None`, every variable.
        overwrite: Boolean, whether an existing file may be replaced. Defaults
            to `False`.
        optimizer: `"drop"`, or `"last"` to copy the optimizer's state from the
            last file. It is never averaged. Defaults to `"drop"`.
        progress: Function that is called with the bytes that have been read
            and those there are, now and then, or `None`.
        process: Tuple of two integers, for folders of Orbax that several
            processes average together: the number of this process, from 0 on,
            and how many there are, such as `(jax.process_index(),
            jax.process_count())`. Each does a share, whenever it runs; the last
            one to end writes the output. Defaults to `None`, one for all.

    Example:

    >>> import tempfile, keras, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in (1, 2):
    ...         model.save_weights(f"{folder}/{epoch}.weights.h5")
    ...     report = keras_wavg.average_checkpoints(
    ...         [f"{folder}/1.weights.h5", f"{folder}/2.weights.h5"],
    ...         f"{folder}/mean.weights.h5",
    ...     )
    ...     model.load_weights(f"{folder}/mean.weights.h5")
    >>> report.averaged
    ('layers/dense/vars/0', 'layers/dense/vars/1')

    Returns:
        An `AverageReport`: what was averaged, copied and dropped, the
        coefficients, the checksums. The file keeps it, too.

    Raises:
        ValueError: If an argument is not one of these; if a file is damaged or
            not as Keras writes it; if variables, or the values of integer ones,
            differ that are neither counts nor seeds; if a variable is NaN or
            infinite. Nothing is written then.
        FileExistsError: If there is a file and not `overwrite`.
        OSError: If a file cannot be read or written.
        ImportError: If `tensorstore` is missing for a folder of Orbax, or
            `universal_pathlib` for a URL.
    """
    target = located(output)
    given = checked(paths, steps)
    refuse_output(target, overwrite=overwrite, paths=given)
    with planned(
        given,
        weights=weights,
        normalize=normalize,
        strict=strict,
        include=include,
        optimizer=optimizer,
    ) as plan:
        if process is None:
            return execute(
                plan,
                target,
                strict=strict,
                overwrite=overwrite,
                progress=progress,
            )
        return execute_share(
            plan,
            target,
            process,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
