"""The oracle: each average by its definition, in float64, naive on purpose."""

from collections.abc import Callable, Sequence

import numpy

Weights = Sequence[numpy.ndarray]


def ema(
    samples: Sequence[Weights],
    decay: float,
    *,
    initial: Weights | None = None,
    every: int = 1,
    start: int = 0,
    warmup: bool = False,
) -> list[numpy.ndarray]:
    """Exponential moving average of the weights after each optimizer step.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        decay: Share kept in one optimizer step.
        initial: Weights from before training: the textbook recursion starts
            there. Without them the average is corrected for bias.
        every: Optimizer steps between samples.
        start: Optimizer steps that do not count.
        warmup: Whether the n-th step keeps `min(decay, (1 + n) / (10 + n))`.

    Returns:
        List of float64 arrays.
    """
    counted = samples[start:]
    averages = [
        numpy.zeros(w.shape)
        if initial is None
        else initial[i].astype("float64")
        for i, w in enumerate(samples[0])
    ]
    total = 0.0 if initial is None else 1.0
    for last in range(every, len(counted) + 1, every):
        kept = 1.0
        for n in range(last - every + 1, last + 1):
            kept *= min(decay, (1 + n) / (10 + n)) if warmup else decay
        sample = counted[last - 1]
        averages = [
            kept * average + (1 - kept) * weights.astype("float64")
            for average, weights in zip(averages, sample, strict=True)
        ]
        total = kept * total + (1 - kept)
    return [average / total for average in averages]


def of_finite(
    samples: Sequence[Weights], coefficient: Callable[[int], float]
) -> list[numpy.ndarray]:
    """The average of each element over the samples in which it is finite.

    An element that is NaN or infinite in the n-th sample is not moved by it. It
    begins at its first finite value.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        coefficient: Function from n to how far the n-th sample moves it.

    Returns:
        List of float64 arrays.
    """
    averages = [w.astype("float64") for w in samples[0]]
    for n, sample in enumerate(samples, start=1):
        for average, weights in zip(averages, sample, strict=True):
            for index in numpy.ndindex(average.shape):
                weight = float(weights[index])
                if not numpy.isfinite(weight):
                    continue
                if not numpy.isfinite(average[index]):
                    average[index] = weight
                average[index] += coefficient(n) * (weight - average[index])
    return averages


def relative_error(received: Weights, expected: Weights) -> float:
    """Largest difference, each array's measured by its largest element.

    An array that happens to lie near zero is measured by 0.1, the size of the
    weights of the tests' models: it was rounded when it was larger.
    """
    errors = [
        numpy.max(numpy.abs(a.astype("float64") - b))
        / max(0.1, numpy.max(numpy.abs(b)))
        for a, b in zip(received, expected, strict=True)
        if b.size
    ]
    return float(numpy.max(errors))


def mean(samples: Sequence[Weights]) -> list[numpy.ndarray]:
    """The equal-weight mean of some samples of the weights.

    Returns:
        List of float64 arrays.
    """
    columns = zip(*samples, strict=True)
    return [
        numpy.mean([w.astype("float64") for w in column], axis=0)
        for column in columns
    ]


def lookahead(
    samples: Sequence[Weights], initial: Weights, alpha: float
) -> list[numpy.ndarray]:
    """Lookahead's slow weights, given the fast ones at each synchronization.

    Returns:
        List of float64 arrays.
    """
    slow = [w.astype("float64") for w in initial]
    for fast in samples:
        slow = [s + alpha * (f - s) for s, f in zip(slow, fast, strict=True)]
    return slow


def swag_moments(
    samples: Sequence[Weights], rank: int
) -> tuple[list[numpy.ndarray], list[numpy.ndarray], list[list[numpy.ndarray]]]:
    """SWAG's mean, variance E[w**2] - E[w]**2, and the latest deviations.

    Returns:
        `(mean, variance, deviations)`, float64; a deviation is a sample's
        distance from the mean of the samples up to it.
    """
    average = mean(samples)
    squares = mean([[w.astype("float64") ** 2 for w in s] for s in samples])
    variance = [q - m**2 for q, m in zip(squares, average, strict=True)]
    deviations = [
        [w - m for w, m in zip(sample, mean(samples[: n + 1]), strict=True)]
        for n, sample in enumerate(samples)
    ]
    return average, variance, deviations[-rank:]


def power(
    samples: Sequence[Weights], exponent: float, every: int = 1
) -> list[numpy.ndarray]:
    """Power-function average: each step has a share like `step**exponent`.

    The steps up to a sample have the sample's weights.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        exponent: Gamma of the paper.
        every: Optimizer steps between samples.

    Returns:
        List of float64 arrays.
    """
    ends = range(every, len(samples) + 1, every)
    masses = [
        end ** (exponent + 1) - (end - every) ** (exponent + 1) for end in ends
    ]
    return weighted_mean([samples[end - 1] for end in ends], masses)


def weighted_mean(
    samples: Sequence[Weights], weights: Sequence[float]
) -> list[numpy.ndarray]:
    """The mean of some samples, each with a weight, not rounded.

    Returns:
        List of float64 arrays.
    """
    columns = zip(*samples, strict=True)
    return [
        sum(w * x.astype("float64") for w, x in zip(weights, c, strict=True))
        / sum(weights)
        for c in columns
    ]


def bema(
    samples: Sequence[Weights],
    initial: Weights,
    *,
    every: int,
    start: int = 0,
    ema_power: float = 0.5,
    bias_power: float = 0.2,
    lag: float = 10.0,
    multiplier: float = 1.0,
    trained: Sequence[bool] | None = None,
) -> list[numpy.ndarray]:
    """BEMA after the latest update, as the paper writes it.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        initial: Weights after step `start`.
        every: Optimizer steps between updates.
        start: Optimizer steps of the burn-in.
        ema_power: `kappa`.
        bias_power: `eta`.
        lag: `rho`.
        multiplier: `gamma`.
        trained: Whether gradients train each weight, by which the lag is
            corrected. All of them if missing.

    Returns:
        List of float64 arrays.
    """
    ema = first = [w.astype("float64") for w in initial]
    out = first
    for step in range(start + every, len(samples) + 1, every):
        time = lag + multiplier * (step - start)
        alpha, beta = time**-bias_power, time**-ema_power
        weights = [w.astype("float64") for w in samples[step - 1]]
        ema = [
            (1 - beta) * e + beta * w for e, w in zip(ema, weights, strict=True)
        ]
        out = [
            e + alpha * (w - f) if moves else e
            for e, w, f, moves in zip(
                ema, weights, first, trained or [True] * len(ema), strict=True
            )
        ]
    return out
