"""What each snapshot of a training is made of: its profile, or its step."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.opener import Opener
from keras_wavg.files.streaming import blocks
from keras_wavg.profile import ATTRIBUTE, Profile

_ONE = numpy.array([0.0, 1.0])
_MOST_STEPS = 2**53


def profiles_in(
    paths: Sequence[Path],
    gradient_accumulation_steps: int | None = None,
    *,
    counts_steps: bool = True,
) -> list[Profile]:
    """The profiles of snapshots.

    Raw weights stand for the steps that they are nearest to.

    Args:
        paths: Sequence of `pathlib.Path`s.
        gradient_accumulation_steps: See `synthesize`.
        counts_steps: Boolean, whether it matters that steps are optimizer
            steps, and not batches.

    Returns:
        List of `Profile`s.

    Raises:
        ValueError: If a snapshot does not know its time, or two have the same.
    """
    if gradient_accumulation_steps is not None:
        gradient_accumulation_steps = arguments.integer(
            "gradient_accumulation_steps",
            gradient_accumulation_steps,
            at_least=1,
        )
    found = list(_read(paths, gradient_accumulation_steps))
    in_batches = [path for path, (_, is_known) in found if not is_known]
    if in_batches and (counts_steps or len(in_batches) < len(found)):
        raise ValueError(
            "A `.weights.h5` does not tell how many batches its optimizer "
            f"accumulated to a step. Received: {str(in_batches[0])!r}. Pass "
            "`gradient_accumulation_steps`, 1 if there was no accumulation, or "
            "save snapshots as `.keras`."
        )
    profiles = [profile for _, (profile, _) in found]
    _refuse_two_of_a_time(paths, profiles)
    raw = sorted({float(p.times[0]) for p in profiles if len(p.times) == 1})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(raw)]
    edges = [0.0, *middles, *raw[-1:]]
    nearest = dict(zip(raw, itertools.pairwise(edges), strict=True))
    return [
        Profile(numpy.array(nearest[float(p.times[0])]), _ONE, p.steps)
        if len(p.times) == 1
        else p
        for p in profiles
    ]


def _read(
    paths: Sequence[Path], accumulated: int | None
) -> Iterator[tuple[Path, tuple[Profile, bool]]]:
    opener = Opener()
    for path in paths:
        with opener.open(path) as checkpoint:
            yield path, _profile(checkpoint, accumulated)


def _profile(
    checkpoint: Checkpoint, accumulated: int | None
) -> tuple[Profile, bool]:
    """The profile, and whether its steps are known to be optimizer steps."""
    text = checkpoint.attributes.get(ATTRIBUTE)
    if text is not None:
        try:
            return Profile.from_json(text), True
        except ValueError as error:
            raise ValueError(f"{checkpoint.name}: {error}") from error
    batches = _batches(checkpoint)
    known = accumulated or _accumulated(checkpoint)
    step = batches // (known or 1)
    if not 1 <= step < _MOST_STEPS:
        raise ValueError(
            "The optimizer of a snapshot must have made a step. Received: "
            f"{checkpoint.name}, whose optimizer counts {batches} batches"
        )
    return Profile.mean([step], step), known is not None


def _batches(checkpoint: Checkpoint) -> int:
    """The count of the optimizer."""
    for path in checkpoint.contents.step_paths:
        array = checkpoint.arrays.get(path)
        if array and not array.shape and array.dtype.startswith("int"):
            data = bytearray(array.nbytes)
            (block,) = blocks({path: array})
            checkpoint.read_into(memoryview(data), block)
            return int.from_bytes(data, "little", signed=True)
    raise ValueError(
        "A snapshot must carry its profile, or the optimizer whose step "
        f"tells its time. Received: {checkpoint.name}, which has neither. "
        "Save snapshots by `PowerEMA(snapshots=...)`, or of a compiled "
        "model."
    )


def _accumulated(checkpoint: Checkpoint) -> int | None:
    """The batches of a step, or `None` if the file does not say."""
    slots = [
        path
        for path, array in checkpoint.arrays.items()
        if checkpoint.contents.part_of(path) == "optimizer" and array.shape
    ]
    if not slots:
        return 1  # There is nothing in which gradients could be accumulated.
    text = checkpoint.read_config()
    if text is None:
        return None
    try:
        config = json.loads(text)
        optimizer = config["compile_config"]["optimizer"]["config"]
        inner = optimizer.get("inner_optimizer")
        steps = (inner["config"] if inner else optimizer).get(
            "gradient_accumulation_steps"
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return _positive(steps)


def _positive(steps: Any) -> int | None:
    if steps is None:
        return 1
    return steps if isinstance(steps, int) and steps > 0 else None


def _refuse_two_of_a_time(
    paths: Sequence[Path], profiles: Sequence[Profile]
) -> None:
    first: dict[Any, Path] = {}
    for path, profile in zip(paths, profiles, strict=True):
        arrays = profile.times.tobytes(), profile.shares.tobytes()
        key = profile.steps, profile.exponent, *arrays
        other = first.setdefault(key, path)
        if other is not path:
            raise ValueError(
                "Snapshots must be of different times, or of different "
                f"averages. Received: {str(other)!r} and {str(path)!r}, both "
                f"after {profile.steps} steps. Leave one of them out."
            )
