"""The mean of saved weights, streamed from file to file."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy

from keras_wavg import arguments, atomic
from keras_wavg.arguments import Include
from keras_wavg.files.average_report import AverageReport, SourceReport
from keras_wavg.files.checksum import checksum, digest, require_whole
from keras_wavg.files.factors import factors
from keras_wavg.files.file_plan import FilePlan, make_plan
from keras_wavg.files.opener import Opener
from keras_wavg.files.orbax.conversion import (
    config,
    is_converted,
    without_config,
    write_file,
)
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.outputs import Written, opened
from keras_wavg.files.paths import (
    Paths,
    archive_like,
    checked,
    refuse_output,
    step_of,
)
from keras_wavg.files.streaming import (
    Block,
    Progress,
    for_each,
    in_parallel,
)
from keras_wavg.files.summing import Summing


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
            taken. They need `tensorstore`.
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
        ImportError: If `tensorstore` is missing for a folder of Orbax.
    """
    target = Path(output)
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
        return execute(
            plan, target, strict=strict, overwrite=overwrite, progress=progress
        )


def execute(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    made_of: Sequence[SourceReport] | None = None,
) -> AverageReport:
    """Do what was planned, and write the output, whole or not at all.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the file to write.
        strict: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.
        progress: See `average_checkpoints`.
        made_of: Sequence of `SourceReport`s of what the checkpoints were made
            of themselves, to be named in their place, or `None`.

    Returns:
        An `AverageReport`.

    Raises:
        See `average_checkpoints`.
    """
    if is_converted(plan, output):
        return _converted(
            plan, output, strict=strict, overwrite=overwrite, progress=progress
        )
    with opened(plan, output, overwrite=overwrite) as made:
        summing = Summing(plan, made, strict=strict)
        for_each(summing.work, summing.arrays, _of_all(plan, progress))
        _carry(plan, made)
        for checkpoint in plan.checkpoints:
            checkpoint.check_unchanged()
        report = _report(plan, summing, output, made_of)
        made.finish(report.provenance())
    return report


def _converted(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AverageReport:
    """The average of folders of Orbax, as a file."""
    with atomic.folder_beside(output) as folder:
        step = folder / "0"
        mean = execute(plan, step, strict=strict, progress=progress)
        file = write_file(step, config(plan), folder / output.name)
        with planned([file]) as converted:
            return execute(
                converted, output, overwrite=overwrite, made_of=mean.sources
            )


def _of_all(plan: FilePlan, progress: Progress | None) -> Progress | None:
    """The progress in bytes of all checkpoints, given that in those of one."""
    count = len(plan.checkpoints)
    if progress is None:
        return None
    return lambda done, total: progress(count * done, count * total)


@contextlib.contextmanager
def planned(
    paths: Paths,
    *,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    strict: bool = True,
    include: Include = None,
    optimizer: str = "drop",
) -> Iterator[FilePlan]:
    """Context in which checkpoints are open, and it is decided what to do.

    Args: See `average_checkpoints`.

    Yields:
        A `FilePlan`.

    Raises:
        ValueError: If there is nothing that can be done.
    """
    given, weights, config_of = without_config(checked(paths), weights)
    numbers = factors(weights, len(given), normalize=normalize)
    if optimizer not in {"drop", "last"}:
        raise ValueError(
            "`optimizer` must be 'drop' or 'last'. Received: "
            f"optimizer={optimizer!r}"
        )
    with contextlib.ExitStack() as stack:
        opener = Opener()
        checkpoints = [stack.enter_context(opener.open(p)) for p in given]
        plan = make_plan(
            checkpoints,
            numbers,
            strict=strict,
            optimizer=optimizer,
            include=arguments.include(include),
        )
        yield replace(plan, config_of=config_of)


def planned_report(
    plan: FilePlan, output: Path, *, overwrite: bool = False
) -> AverageReport:
    """What the report will be, without checksums."""
    archive_like(plan, output)
    if is_converted(plan, output):
        config(plan)
    elif isinstance(plan.last, OrbaxCheckpoint):
        step_of(plan, output, overwrite=overwrite)
    compared = dict.fromkeys(plan.compared, "if the same in all")
    sources = _source_reports(plan, [""] * len(plan.checkpoints))
    return _described(plan, output, compared, sources, "")


def _carry(plan: FilePlan, output: Written) -> None:
    last = plan.last
    carried = {p: last.arrays[p] for p in plan.copied if p not in last.weights}

    def copy(block: Block) -> None:
        data = numpy.empty(block.nbytes, "uint8")
        last.read_into(data.data, block)
        output.write(data.data, block)

    for_each(copy, carried)


def _report(
    plan: FilePlan,
    summing: Summing,
    output: Path,
    made_of: Sequence[SourceReport] | None,
) -> AverageReport:
    compared = dict.fromkeys(plan.compared, "the same in all")
    compared |= dict.fromkeys(summing.differing, "integers that differ")
    sources = _source_reports(plan, _checksums(plan, summing))
    own = digest(summing.arrays, summing.output_sums)
    return _described(plan, output, compared, made_of or sources, own)


def _described(
    plan: FilePlan,
    output: Path,
    compared: Mapping[str, str],
    sources: Sequence[SourceReport],
    checksum: str,
) -> AverageReport:
    return AverageReport(
        output=output,
        sources=tuple(sources),
        averaged=tuple(sorted(plan.averaged)),
        copied={**compared, **plan.copied},
        dropped=dict(plan.dropped),
        notes=tuple(plan.notes),
        checksum=checksum,
    )


def _checksums(plan: FilePlan, summing: Summing) -> list[str]:
    if not plan.all_match:
        # Not all of a file has been read.
        return [checksum(checkpoint) for checkpoint in plan.checkpoints]
    arrays, sums = summing.arrays, summing.source_sums
    in_parallel(
        lambda pair: require_whole(pair[0], arrays, pair[1]),
        zip(plan.checkpoints, sums, strict=True),
    )
    return [digest(arrays, one) for one in sums]


def _source_reports(
    plan: FilePlan, checksums: Sequence[str]
) -> list[SourceReport]:
    paths = [checkpoint.path for checkpoint in plan.checkpoints]
    rows = zip(paths, plan.factors.coefficients, checksums, strict=True)
    return [SourceReport(*row) for row in rows]
