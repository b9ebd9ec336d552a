"""Opens checkpoints, and decides what becomes of them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.factors import factors
from keras_wavg.files.file_plan import FilePlan, make_plan
from keras_wavg.files.opener import Opener
from keras_wavg.files.orbax.conversion import (
    config,
    is_converted,
    without_config,
)
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.paths import Paths, archive_like, checked, step_of
from keras_wavg.files.reports import described, source_reports


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
    sources = source_reports(plan, [""] * len(plan.checkpoints))
    return described(plan, output, compared, sources, "")
