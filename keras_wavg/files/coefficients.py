"""Coefficients for the `weights` of `average_checkpoints`.

Each function returns a list of floats that sum to one, the coefficient of the
oldest checkpoint first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras_wavg import arguments

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda fraction: 1 - fraction,
    "cosine": lambda fraction: (1 + math.cos(math.pi * fraction)) / 2,
    "1-sqrt": lambda fraction: 1 - math.sqrt(fraction),
}
"""The relative learning rate after a fraction of the decay, by its shape."""


def uniform(count: int) -> list[float]:
    """Equal coefficients, as in SWA and uniform soups (PMA: SMA).

    Args:
        count: Positive integer, the number of checkpoints.

    Example:

    >>> uniform(4)
    [0.25, 0.25, 0.25, 0.25]

    Returns:
        List of floats.

    Raises:
        ValueError: If `count` is not a positive integer.

    References:
        [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482)
    """
    return _normalize([1.0] * _count(count))


def ascending(count: int) -> list[float]:
    """Coefficients in proportion to the position (PMA: WMA).

    Args:
        count: Positive integer, the number of checkpoints.

    Example:

    >>> ascending(4)
    [0.1, 0.2, 0.3, 0.4]

    Returns:
        List of floats.

    Raises:
        ValueError: If `count` is not a positive integer.

    References:
        [Li et al., 2025](https://arxiv.org/abs/2505.12082)
    """
    return _normalize([float(i + 1) for i in range(_count(count))])


def ema(count: int, decay: float) -> list[float]:
    """Coefficients of an exponential moving average (PMA: EMA).

    They equal those of `EMA(decay)` with bias correction, with one sample for
    each checkpoint.

    Args:
        count: Positive integer, the number of checkpoints.
        decay: Float in (0, 1], the ratio of the coefficient of a checkpoint to
            that of the next one.

    Example:

    >>> [round(c, 4) for c in ema(3, 0.5)]
    [0.1429, 0.2857, 0.5714]

    Returns:
        List of floats.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        - [Li et al., 2025](https://arxiv.org/abs/2505.12082)
        - [Kingma and Ba, 2015](https://arxiv.org/abs/1412.6980), section 3,
          for the bias correction
    """
    ratio = arguments.fraction("decay", decay)
    return _normalize([ratio**age for age in reversed(range(_count(count)))])


def decay_emulation(count: int, shape: str = "linear") -> list[float]:
    """Coefficients that emulate a decay of the learning rate (WSM).

    The checkpoints are from training at a constant learning rate. If the k-th
    update of a decay over `count - 1` updates scales the constant rate by
    `w_k`, the mean with coefficients `c_k = w_k - w_{k+1}` is where the decay
    would have led with the same gradients. For a linear decay this is the
    uniform mean.

    Args:
        count: Positive integer, the number of checkpoints.
        shape: String, how the learning rate decays from 1 to 0: `"linear"`,
            `"cosine"` or `"1-sqrt"`. Defaults to `"linear"`.

    Example:

    >>> [round(c, 3) for c in decay_emulation(5, "cosine")]
    [0.095, 0.25, 0.309, 0.25, 0.095]

    Returns:
        List of floats.

    Raises:
        ValueError: If an argument is invalid.

    References:
        [Tian et al., 2025](https://arxiv.org/abs/2507.17634)
    """
    if shape not in DECAYS:
        raise ValueError(
            f"`shape` must be one of {sorted(DECAYS)}. Received: "
            f"shape={shape!r}"
        )
    size = _count(count)
    rates = [DECAYS[shape](k / size) for k in range(size)] + [0.0]
    return _normalize([rates[k] - rates[k + 1] for k in range(size)])


def _count(count: Any) -> int:
    return arguments.integer("count", count, at_least=1)


def _normalize(numbers: Sequence[float]) -> list[float]:
    total = math.fsum(numbers)
    return [number / total for number in numbers]
