"""Reads the profile or the optimizer step of each snapshot of a training."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.streaming import blocks
from keras_wavg.profile import ATTRIBUTE, Profile

_ONE = numpy.array([0.0, 1.0])
_MAX_STEPS = 2**53


def profiles_in(
    paths: Sequence[Path],
    gradient_accumulation_steps: int | None = None,
    *,
    in_steps: bool = True,
) -> list[Profile]:
    """Read the profiles of snapshots.

    Raw weights represent the steps that they are nearest to.

    Args:
        paths: Sequence of `pathlib.Path`s.
        gradient_accumulation_steps: See `synthesize`.
        in_steps: Boolean, whether times must be in optimizer steps. Otherwise
            they may be in batches if all are. Defaults to `True`.

    Returns:
        List of `Profile`s.

    Raises:
        ValueError: If the time of a snapshot is unknown, or if two have the
            same profile.
    """
    if gradient_accumulation_steps is not None:
        gradient_accumulation_steps = arguments.integer(
            "gradient_accumulation_steps",
            gradient_accumulation_steps,
            at_least=1,
        )
    read = list(_read(paths, gradient_accumulation_steps))
    in_batches = [path for path, (_, is_in_steps) in read if not is_in_steps]
    if in_batches and (in_steps or len(in_batches) < len(read)):
        raise ValueError(
            "A `.weights.h5` file does not contain the number of batches for "
            f"each optimizer step. Received: {str(in_batches[0])!r}. Pass "
            "`gradient_accumulation_steps` (1 without accumulation), or save "
            "snapshots as `.keras` files."
        )
    profiles = [profile for _, (profile, _) in read]
    _refuse_duplicates(paths, profiles)
    raw = sorted({float(p.times[0]) for p in profiles if len(p.times) == 1})
    midpoints = [(a + b) / 2 for a, b in itertools.pairwise(raw)]
    edges = [0.0, *midpoints, *raw[-1:]]
    intervals = dict(zip(raw, itertools.pairwise(edges), strict=True))
    return [
        Profile(numpy.array(intervals[float(p.times[0])]), _ONE, p.steps)
        if len(p.times) == 1
        else p
        for p in profiles
    ]


def _read(
    paths: Sequence[Path], accumulation_steps: int | None
) -> Iterator[tuple[Path, tuple[Profile, bool]]]:
    opener = CheckpointOpener()
    for path in paths:
        with opener.open(path) as checkpoint:
            yield path, _profile(checkpoint, accumulation_steps)


def _profile(
    checkpoint: Checkpoint, accumulation_steps: int | None
) -> tuple[Profile, bool]:
    """The profile, and whether its times are in optimizer steps."""
    text = checkpoint.attributes.get(ATTRIBUTE)
    if text is not None:
        try:
            return Profile.from_json(text), True
        except ValueError as error:
            raise ValueError(f"{checkpoint.name}: {error}") from error
    batches = _batches(checkpoint)
    known = accumulation_steps or _accumulation_steps(checkpoint)
    step = batches // (known or 1)
    if not 1 <= step < _MAX_STEPS:
        raise ValueError(
            "The optimizer of a snapshot must have made a step. Received: "
            f"{checkpoint.name}, whose optimizer has counted {batches} batches"
        )
    return Profile.mean([step], step), known is not None


def _batches(checkpoint: Checkpoint) -> int:
    """The number of batches that the optimizer has counted."""
    for path in checkpoint.contents.step_count_paths:
        array = checkpoint.arrays.get(path)
        if array and not array.shape and array.dtype.startswith("int"):
            data = bytearray(array.nbytes)
            (block,) = blocks({path: array})
            checkpoint.read_into(memoryview(data), block)
            return int.from_bytes(data, "little", signed=True)
    raise ValueError(
        "A snapshot must contain its profile or the state of an optimizer. "
        f"Received: {checkpoint.name}, which has neither. Save snapshots with "
        "`PowerEMA(snapshot_dir=...)`, or from a compiled model."
    )


def _accumulation_steps(checkpoint: Checkpoint) -> int | None:
    """The number of batches for each step, or `None` if it is unknown."""
    slots = [
        path
        for path, array in checkpoint.arrays.items()
        if checkpoint.contents.part_of(path) == "optimizer" and array.shape
    ]
    if not slots:
        return 1  # The optimizer has no variables to accumulate gradients in.
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
    if steps is None:
        return 1
    return steps if isinstance(steps, int) and steps > 0 else None


def _refuse_duplicates(
    paths: Sequence[Path], profiles: Sequence[Profile]
) -> None:
    first: dict[Any, Path] = {}
    for path, profile in zip(paths, profiles, strict=True):
        arrays = profile.times.tobytes(), profile.coefficients.tobytes()
        key = profile.steps, profile.exponent, *arrays
        other = first.setdefault(key, path)
        if other is not path:
            raise ValueError(
                "Snapshots must be from different times or of different "
                f"averages. Received: {str(other)!r} and {str(path)!r}, both "
                f"after {profile.steps} steps. Remove one of them."
            )
