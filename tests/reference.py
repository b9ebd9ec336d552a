"""Each average by its definition, in float64, without optimization."""

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
        decay: Coefficient of the average in one optimizer step.
        initial: Weights before training, from which the textbook recursion
            starts. Without them the average is corrected for bias.
        every: Optimizer steps between samples.
        start: Optimizer steps before the average starts.
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


def average_of_finite(
    samples: Sequence[Weights], coefficient: Callable[[int], float]
) -> list[numpy.ndarray]:
    """The average of each element over the samples in which it is finite.

    An element that is NaN or infinite in a sample is not changed by it. It
    starts at its first finite value.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        coefficient: Function from n to the coefficient of the n-th sample.

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
    """Largest difference, relative to the largest element of each array.

    For an array near zero it is relative to 0.1, the size of weights in the
    models of the tests: the array was rounded when it was larger.
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
    """Power-function average: the coefficient of a step is `step**exponent`.

    The steps up to a sample have the weights of the sample.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        exponent: Gamma of the paper.
        every: Optimizer steps between samples.

    Returns:
        List of float64 arrays.
    """
    ends = range(every, len(samples) + 1, every)
    coefficients = [
        end ** (exponent + 1) - (end - every) ** (exponent + 1) for end in ends
    ]
    return weighted_mean([samples[end - 1] for end in ends], coefficients)


def weighted_mean(
    samples: Sequence[Weights], coefficients: Sequence[float]
) -> list[numpy.ndarray]:
    """The mean of samples, each with a coefficient, not rounded.

    Returns:
        List of float64 arrays.
    """
    columns = zip(*samples, strict=True)
    return [
        sum(
            c * w.astype("float64")
            for c, w in zip(coefficients, column, strict=True)
        )
        / sum(coefficients)
        for column in columns
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
    """BEMA after the latest update, as the paper defines it.

    Args:
        samples: Weights after optimizer step 1, 2, ...
        initial: Weights after step `start`.
        every: Optimizer steps between updates.
        start: Optimizer steps of the burn-in.
        ema_power: `kappa`.
        bias_power: `eta`.
        lag: `rho`.
        multiplier: `gamma`.
        trained: For each weight, whether gradients train it: only then its lag
            is corrected. Defaults to all.

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
