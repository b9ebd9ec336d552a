"""The decay of an exponential moving average, from a horizon in any unit."""

import math
from collections.abc import Mapping

from keras_wavg import arguments
from keras_wavg.profile import WIDEST
from keras_wavg.schedules import decay_from_half_life

_UNITS = {"steps": None, "epochs": "steps_per_epoch", "samples": "batch_size"}
# Of 1 / decay, times the steps: as good as a plain mean.
_FLATTEST = 1e-3


def decay_from(
    *,
    decay: float | None = None,
    half_life: float | None = None,
    sigma_rel: float | None = None,
    unit: str = "steps",
    steps_per_epoch: float | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    batch_size_ratio: float = 1.0,
) -> float:
    """Convert the horizon of an average to a decay per optimizer step.

    Give one of `decay`, `half_life` and `sigma_rel`. (The other way round,
    `Profile.ema(decay, steps)` knows half-life, mean age and `sigma_rel`.)

    Args:
        decay: Float in [0, 1), a decay per step at another batch size, for
            `batch_size_ratio`.
        half_life: Positive float, in which the average forgets half of its
            past: `2 ** (-1 / half_life)`, in optimizer steps.
        sigma_rel: Float in [1e-9, 1 / sqrt(12)), the deviation of the age
            of what is in the average at the end of a training of `steps`
            steps, by `steps`.
        unit: `"steps"`, `"epochs"` or `"samples"`, that of `half_life`.
            Defaults to `"steps"`.
        steps_per_epoch: Positive float, the optimizer steps of an epoch, for
            `unit="epochs"`.
        batch_size: Positive integer, the samples of an optimizer step, for
            `unit="samples"`.
        steps: Integer > 1, the optimizer steps of the training, for
            `sigma_rel`.
        batch_size_ratio: Positive float, the batch size of this training by
            that of the one for which the horizon was chosen (kappa): the
            decay is raised to its power, so that the average covers as many
            samples as there. (Scale the learning rate too.) Defaults to `1.0`.

    Example:

    >>> round(decay_from(half_life=2, unit="epochs", steps_per_epoch=390), 6)
    0.999112
    >>> round(decay_from(decay=0.999, batch_size_ratio=8), 6)
    0.992028
    >>> round(decay_from(sigma_rel=0.05, steps=10_000), 6)
    0.998002

    ```python
    model.fit(x, y, callbacks=[EMA(decay_from(half_life=100))])
    ```

    Returns:
        Float in [0, 1), for `EMA(decay)`, `Profile.ema` and `synthesize`.

    Raises:
        ValueError: If not exactly one horizon is given, if what its unit needs
            is missing, or if a number is out of its range.

    References:
        - [Busbridge et al., 2023](https://arxiv.org/abs/2307.13813), definition
          1.2, for the batch size
        - [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3,
          for the relative width
    """
    horizons = {"decay": decay, "half_life": half_life, "sigma_rel": sigma_rel}
    given = {k: v for k, v in horizons.items() if v is not None}
    if len(given) != 1:
        raise ValueError(
            "Exactly one of `decay`, `half_life` and `sigma_rel` must be given."
            f" Received: {', '.join(given) or 'none'}"
        )
    ratio = arguments.positive("batch_size_ratio", batch_size_ratio)
    units = {"steps_per_epoch": steps_per_epoch, "batch_size": batch_size}
    size = _steps_of(unit, units)
    if half_life is not None:
        number = arguments.positive("half_life", half_life)
        found = decay_from_half_life(number * size)
    elif sigma_rel is not None:
        found = _decay_from_width(sigma_rel, steps)
    else:
        found = arguments.decay(decay)
    return arguments.decay(found**ratio)


def _steps_of(unit: str, sizes: Mapping[str, float | None]) -> float:
    """The optimizer steps in a unit."""
    if unit not in _UNITS:
        raise ValueError(
            f"`unit` must be one of {list(_UNITS)}. Received: unit={unit!r}"
        )
    needed = _UNITS[unit]
    for name, size in sizes.items():
        if size is not None and name != needed:
            raise ValueError(
                f"`{name}` is for another unit. Received: unit={unit!r}, "
                f"{name}={size!r}. Pass `unit='epochs'` with "
                "`steps_per_epoch`, `unit='samples'` with `batch_size`."
            )
    if needed is None:
        return 1.0
    size = arguments.positive(needed, sizes[needed])
    return size if unit == "epochs" else 1 / size


def _decay_from_width(sigma_rel: float, steps: int | None) -> float:
    """Of a geometric distribution that is cut off at `steps`.

    With `decay = exp(-x)` its variance is `1 / (4 * sinh(x / 2)**2)` less
    `steps**2 / (4 * sinh(steps * x / 2)**2)`, which falls in x.
    """
    count = arguments.integer("steps", steps, at_least=2)
    low = _FLATTEST / count
    if not arguments.is_number(sigma_rel) or not (
        0 < sigma_rel < _width(low, count)
    ):
        raise ValueError(
            f"`sigma_rel` must be in the range (0, {WIDEST:.4f}), of which the "
            f"last is the plain mean. Received: sigma_rel={sigma_rel!r}, "
            f"steps={count}"
        )
    high = 2 * math.asinh(1 / (2 * sigma_rel * count))
    while low < (middle := (low + high) / 2) < high:
        if _width(middle, count) > sigma_rel:
            low = middle
        else:
            high = middle
    return math.exp(-high)


def _width(x: float, steps: int) -> float:
    whole = 1 / (2 * math.sinh(x / 2))
    # Beyond that nothing is cut off, and `sinh` overflows.
    cut = steps / (2 * math.sinh(min(steps * x / 2, 700)))
    return math.sqrt(max(0.0, (whole - cut) * (whole + cut))) / steps
