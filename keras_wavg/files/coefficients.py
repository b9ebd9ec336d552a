"""How much each of some checkpoints counts, the oldest first.

Each function gives a list of floats that sum to one, for `weights` of
`average_checkpoints`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras_wavg import arguments

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
}
"""From a shape to how much of the rate is left at a share of the decay."""


def uniform(count: int) -> list[float]:
    """The same for each: a uniform soup, SWA, the SMA of PMA.

    Args:
        count: Positive integer, how many checkpoints there are.

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
    return _normalized([1.0] * _count(count))


def ascending(count: int) -> list[float]:
    """In proportion to its place, so that the latest counts most.

    The WMA of PMA (averages of checkpoints of a pre-training).

    Args:
        count: Positive integer, how many checkpoints there are.

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
    return _normalized([float(i + 1) for i in range(_count(count))])


def ema(count: int, decay: float) -> list[float]:
    """Fading by `decay` from each checkpoint to the one before it.

    What `EMA(decay)` gives to samples as these: it is corrected for bias.

    Args:
        count: Positive integer, how many checkpoints there are.
        decay: Float in (0, 1].

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
          for the correction
    """
    fading = arguments.share("decay", decay)
    return _normalized([fading**age for age in reversed(range(_count(count)))])


def decay_emulation(count: int, shape: str = "linear") -> list[float]:
    """As if the learning rate had decayed over checkpoints of a constant rate.

    The k-th step of `count - 1` of a decay moves the weights by `w_k` times
    what a constant rate moves them by. The mean with `c_k = w_k - w_{k+1}` is
    where this leads, if the gradients were the same (WSM: warm-up, stable,
    merge). The linear decay is the uniform mean.

    Args:
        count: Positive integer, how many checkpoints there are.
        shape: String, how the rate falls from 1 to 0: `"linear"`, `"cosine"`
            or `"1-sqrt"`. Defaults to `"linear"`.

    Example:

    >>> [round(c, 3) for c in decay_emulation(5, "cosine")]
    [0.095, 0.25, 0.309, 0.25, 0.095]

    Returns:
        List of floats.

    Raises:
        ValueError: If an argument is not one of these.

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
    return _normalized([rates[k] - rates[k + 1] for k in range(size)])


def _count(count: Any) -> int:
    return arguments.integer("count", count, at_least=1)


def _normalized(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]
