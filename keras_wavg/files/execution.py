"""Averages checkpoints according to a plan."""

from collections.abc import Sequence
from pathlib import Path

import numpy

from keras_wavg.files.average_report import (
    AverageReport,
    SourceReport,
    final_report,
)
from keras_wavg.files.block_averager import BlockAverager
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.open_output import CheckpointOutput, open_output
from keras_wavg.files.open_plan import open_plan
from keras_wavg.files.orbax.conversion import (
    is_converted,
    model_config,
    write_keras_file,
)
from keras_wavg.files.remote import temporary_directory_for
from keras_wavg.files.streaming import (
    SINGLE_PROCESS,
    Block,
    Process,
    Progress,
    for_each_block,
)


def execute(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    sources: Sequence[SourceReport] | None = None,
) -> AverageReport:
    """Average checkpoints, and write the output atomically.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the output.
        strict: See `average_checkpoints`. Defaults to `True`.
        overwrite: See `average_checkpoints`. Defaults to `False`.
        progress: A `Progress` or `None`. Defaults to `None`.
        sources: Sequence of `SourceReport`s to name instead of the checkpoints
            of the plan, or `None`. Defaults to `None`.

    Returns:
        An `AverageReport`.

    Raises:
        See `average_checkpoints`.
    """
    if is_converted(plan, output):
        return _average_and_convert(
            plan, output, strict=strict, overwrite=overwrite, progress=progress
        )
    with open_output(plan, output, overwrite=overwrite) as opened:
        averager = BlockAverager(plan, opened, strict=strict)
        write_arrays(plan, averager, opened, progress=progress)
        report = final_report(plan, averager, output, sources)
        opened.finish(report.provenance())
    return report


def _average_and_convert(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AverageReport:
    """Average Orbax checkpoints, and write the average as a file of Keras."""
    config = model_config(plan)  # fails early if there is none
    with temporary_directory_for(output) as directory:
        step = directory / "0"
        mean = execute(plan, step, strict=strict, progress=progress)
        file = write_keras_file(step, config, directory / output.name)
        with open_plan([file]) as converted:
            return execute(
                converted, output, overwrite=overwrite, sources=mean.sources
            )


def write_arrays(
    plan: FilePlan,
    averager: BlockAverager,
    output: CheckpointOutput,
    *,
    process: Process = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> None:
    """Write the arrays of the output, or the share of this process.

    Args:
        plan: A `FilePlan`.
        averager: The `BlockAverager` of the plan.
        output: A `CheckpointOutput`.
        process: The `Process`. Defaults to a single process.
        progress: A `Progress` or `None`. Defaults to `None`.

    Raises:
        See `average_checkpoints`.
    """
    progress = _progress_of_all(plan, progress)
    for_each_block(averager.average, averager.arrays, progress, process)
    _copy_other_parts(plan, output, process)
    for checkpoint in plan.checkpoints:
        checkpoint.check_unchanged()


def _progress_of_all(
    plan: FilePlan, progress: Progress | None
) -> Progress | None:
    """Scale the bytes of one checkpoint to those of all checkpoints."""
    count = len(plan.checkpoints)
    if progress is None:
        return None
    return lambda done, total: progress(count * done, count * total)


def _copy_other_parts(
    plan: FilePlan, output: CheckpointOutput, process: Process
) -> None:
    last = plan.last
    arrays = {p: last.arrays[p] for p in plan.copied if p not in last.weights}

    def copy(block: Block) -> None:
        data = numpy.empty(block.nbytes, "uint8")
        last.read_into(data.data, block)
        output.write(data.data, block)

    for_each_block(copy, arrays, process=process)
