"""Averages Orbax checkpoints in several processes, which share the blocks.

The processes share a hidden directory beside the output. Each one writes its
blocks there, and then a file with their checksums. The process that finds all
of these files writes the metadata and moves the checkpoint into place.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy

from keras_wavg import arguments, atomic
from keras_wavg.files.average_report import (
    AverageReport,
    build_report,
    final_report,
    source_reports,
)
from keras_wavg.files.block_averager import BlockAverager
from keras_wavg.files.execution import write_arrays
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.conversion import is_converted
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint
from keras_wavg.files.orbax.orbax_output import OrbaxOutput
from keras_wavg.files.paths import config_archive, step_to_write
from keras_wavg.files.remote import is_remote
from keras_wavg.files.streaming import Process, Progress

_FINISHING = "finishing"


def checked_process(process: Process) -> Process:
    """Validate the argument `process`."""
    try:
        index, count = process
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`process` must be a tuple of the index of this process and the "
            f"number of processes. Received: process={process!r}"
        ) from error
    count = arguments.integer("process[1]", count, at_least=1)
    index = arguments.integer("process[0]", index, at_least=0)
    if index >= count:
        raise ValueError(
            "`process[0]` must be less than `process[1]`. Received: "
            f"process={process!r}"
        )
    return index, count


def execute_part(
    plan: FilePlan,
    output: Path,
    process: Process,
    *,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AverageReport:
    """Average the blocks of this process. The last one writes the output.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the output.
        process: The `Process`.
        strict: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.
        progress: A `Progress` or `None`.

    Returns:
        An `AverageReport`. Only the one of the last process has checksums.

    Raises:
        See `average_checkpoints`.
    """
    index, count = checked_process(process)
    last = _last_orbax_checkpoint(plan, output, process)
    config_archive(plan, output)
    step = step_to_write(plan, output, overwrite=overwrite)
    shared = step.parent / f"{atomic.PREFIX}_shared-{_key(plan, step, count)}"
    shared.mkdir(parents=True, exist_ok=True)
    for name in (_checksum_file(index), _FINISHING):
        (shared / name).unlink(missing_ok=True)
    with OrbaxOutput(shared / step.name, last, plan.arrays) as opened:
        averager = BlockAverager(plan, opened, strict=strict)
        write_arrays(
            plan, averager, opened, process=(index, count), progress=progress
        )
        _save_checksums(averager, shared / _checksum_file(index))
        if not _is_last(shared, count):
            sources = source_reports(plan, [""] * len(plan.checkpoints))
            return build_report(plan, output, {}, sources, "")
        _load_checksums(averager, shared, count)
        report = final_report(plan, averager, output)
        opened.finish(report.provenance())
    atomic.move(shared / step.name, step, overwrite=overwrite)
    shutil.rmtree(shared)
    return report


def _last_orbax_checkpoint(
    plan: FilePlan, output: Path, process: Process
) -> OrbaxCheckpoint:
    """The last checkpoint, if several processes can average to the output."""
    if (
        not isinstance(plan.last, OrbaxCheckpoint)
        or is_converted(plan, output)
        or is_remote(output)
    ):
        raise ValueError(
            "`process` requires Orbax checkpoints and an Orbax directory as "
            "the output, in a file system that all processes share. Received: "
            f"process={process!r}, output_filepath={str(output)!r}"
        )
    return plan.last


def _key(plan: FilePlan, step: Path, count: int) -> str:
    """A key that all processes of a run share, and no other run."""
    identity = [
        step.name,
        count,
        plan.coefficients.values,
        sorted(plan.averaged),
        sorted(plan.arrays),
        [
            checkpoint.identity
            for checkpoint in plan.checkpoints
            if isinstance(checkpoint, OrbaxCheckpoint)
        ],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _checksum_file(index: int) -> str:
    return f"{index}.npz"


def _save_checksums(averager: BlockAverager, path: Path) -> None:
    temporary = path.with_suffix(".tmp.npz")
    numpy.savez(
        temporary,
        output=averager.output_crcs,
        sources=numpy.stack(averager.source_crcs),
        differing=sorted(averager.differing) or numpy.array([], "U1"),
    )
    temporary.replace(path)


def _is_last(shared: Path, count: int) -> bool:
    """Return whether all processes are done, and no other one has noticed."""
    if not all((shared / _checksum_file(k)).exists() for k in range(count)):
        return False
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(shared / _FINISHING, flags))
    except FileExistsError:
        return False
    return True


def _load_checksums(averager: BlockAverager, shared: Path, count: int) -> None:
    """Load the checksums of the blocks of all processes."""
    parts = []
    for index in range(count):
        path = shared / _checksum_file(index)
        with numpy.load(path, allow_pickle=False) as part:
            parts.append(dict(part))
    # Each process has zeros for the blocks of the others.
    averager.output_crcs = sum(part["output"] for part in parts)
    averager.source_crcs = list(sum(part["sources"] for part in parts))
    for part in parts:
        averager.differing.update(map(str, part["differing"]))
