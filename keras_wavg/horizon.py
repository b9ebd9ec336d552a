"""The decay of an exponential moving average, from a horizon in any unit."""

import math
from collections.abc import Mapping

from keras_wavg import arguments
from keras_wavg.profile import MAX_SIGMA_REL
from keras_wavg.schedules import decay_from_half_life

_UNITS = {"steps": None, "epochs": "steps_per_epoch", "samples": "batch_size"}
# A decay of `exp(-_MIN_RATE / steps)` is, in effect, the plain mean.
_MIN_RATE = 1e-3


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

    Set exactly one of `decay`, `half_life` and `sigma_rel`. For the inverse,
    `Profile.ema(decay, steps)` has `half_life`, `mean_age` and `sigma_rel`.

    Args:
        decay: Float in [0, 1), the decay per optimizer step at another batch
            size, for `batch_size_ratio`. Defaults to `None`.
        half_life: Positive float, the time in which the coefficients of past
            samples halve, in `unit`. In optimizer steps, the decay is
            `2 ** (-1 / half_life)`. Defaults to `None`.
        sigma_rel: Float in (0, 1 / sqrt(12)), the relative width: the standard
            deviation of the age of the samples at the end of training, divided
            by `steps`. Defaults to `None`.
        unit: String, the unit of `half_life`: `"steps"`, `"epochs"` or
            `"samples"`. Defaults to `"steps"`.
        steps_per_epoch: Positive float, the number of optimizer steps in an
            epoch, for `unit="epochs"`. Defaults to `None`.
        batch_size: Positive integer, the number of samples in an optimizer
            step, for `unit="samples"`. Defaults to `None`.
        steps: Integer >= 2, the number of optimizer steps of the training, for
            `sigma_rel`. Defaults to `None`.
        batch_size_ratio: Positive float, the batch size of this training
            divided by that for which the horizon was chosen (kappa in the
            paper). The decay is raised to this power, so that the average
            covers the same number of samples. Scale the learning rate too.
            Defaults to `1.0`.

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
        Float in [0, 1), for `EMA`, `Profile.ema` and `synthesize`.

    Raises:
        ValueError: If not exactly one horizon is set, if an argument that the
            unit needs is missing, or if an argument is out of its range.

    References:
        - [Busbridge et al., 2023](https://arxiv.org/abs/2307.13813), definition
          1.2, for the batch size
        - [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3,
          for the relative width
    """
    horizons = {"decay": decay, "half_life": half_life, "sigma_rel": sigma_rel}
    received = [name for name, value in horizons.items() if value is not None]
    if len(received) != 1:
        raise ValueError(
            "Exactly one of `decay`, `half_life` and `sigma_rel` must be set. "
            f"Received: {', '.join(received) or 'none of them'}"
        )
    ratio = arguments.positive("batch_size_ratio", batch_size_ratio)
    sizes = {"steps_per_epoch": steps_per_epoch, "batch_size": batch_size}
    steps_per_unit = _steps_per_unit(unit, sizes)
    if half_life is not None:
        half_life = arguments.positive("half_life", half_life)
        per_step = decay_from_half_life(half_life * steps_per_unit)
    elif sigma_rel is not None:
        per_step = _decay_from_sigma_rel(sigma_rel, steps)
    else:
        per_step = arguments.decay(decay)
    return arguments.decay(per_step**ratio)


def _steps_per_unit(unit: str, sizes: Mapping[str, float | None]) -> float:
    if unit not in _UNITS:
        raise ValueError(
            f"`unit` must be one of {list(_UNITS)}. Received: unit={unit!r}"
        )
    required = _UNITS[unit]
    for name, size in sizes.items():
        if size is not None and name != required:
            raise ValueError(
                f"`{name}` does not apply to this unit. Received: "
                f"unit={unit!r}, {name}={size!r}. Use `unit='epochs'` with "
                "`steps_per_epoch`, or `unit='samples'` with `batch_size`."
            )
    if required is None:
        return 1.0
    size = arguments.positive(required, sizes[required])
    return size if unit == "epochs" else 1 / size


def _decay_from_sigma_rel(sigma_rel: float, steps: int | None) -> float:
    """Find the decay of a relative width by bisection."""
    steps = arguments.integer("steps", steps, at_least=2)
    low = _MIN_RATE / steps
    if not arguments.is_number(sigma_rel) or not (
        0 < sigma_rel < _sigma_rel(low, steps)
    ):
        raise ValueError(
            f"`sigma_rel` must be in the range (0, {MAX_SIGMA_REL:.4f}); the "
            "upper bound is the width of the plain mean. Received: "
            f"sigma_rel={sigma_rel!r}, steps={steps}"
        )
    high = 2 * math.asinh(1 / (2 * sigma_rel * steps))
    while low < (middle := (low + high) / 2) < high:
        if _sigma_rel(middle, steps) > sigma_rel:
            low = middle
        else:
            high = middle
    return math.exp(-high)


def _sigma_rel(rate: float, steps: int) -> float:
    """Return the relative width of the decay `exp(-rate)` after some steps.

    The age has a geometric distribution, truncated at `steps`. Its variance is
    `1 / (4 * sinh(rate / 2)**2) - steps**2 / (4 * sinh(steps * rate / 2)**2)`.
    """
    untruncated = 1 / (2 * math.sinh(rate / 2))
    # At large arguments the second term is 0, and `sinh` overflows.
    truncation = steps / (2 * math.sinh(min(steps * rate / 2, 700)))
    difference = (untruncated - truncation) * (untruncated + truncation)
    return math.sqrt(max(0.0, difference)) / steps
