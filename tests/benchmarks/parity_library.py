"""Base class of the checks of a library, and weights to be averaged."""

import abc
import itertools

import numpy
import reference

DECAY = 0.9
# Length of the training of `ticks`.
CLOCK_STEPS = 1000


class Library(abc.ABC):
    """A column of the table. Each public method is a check.

    Attributes:
        starts: String, where the average starts according to the documentation:
            `"before training"` or `"at the first step"`.
    """

    starts = "before training"

    @abc.abstractmethod
    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        """Return the average of weights that take the values of samples.

        Args:
            samples: Array, weights before training and after each step.
            decay: Float, the decay per step.
            corrected: Boolean, whether to use the feature of the library that
                reduces the influence of the initial weights.
            dtype: String, the dtype of the weights. The average has the best
                dtype that the library offers for it.

        Returns:
            A float64 array.
        """

    def error_of_fifty_steps(self):
        samples = walk(50)
        return error(self.follow(samples), samples, DECAY, self.starts)

    def coefficient_of_the_initial_weights(self):
        samples = numpy.zeros((51, 3), "float32")
        samples[:2] = 1
        return self.follow(samples, 0.999, corrected=True).max()

    def bfloat16(self):
        ones = 2 if self.starts == "at the first step" else 1
        samples = numpy.full((5000 + ones, 3), 2, "float32")
        samples[:ones] = 1
        return self.follow(samples, 0.999, dtype="bfloat16").max()

    def step_with_nan(self):
        samples = numpy.ones((10, 3), "float32")
        samples[5] = numpy.nan
        return self.follow(samples).max()


def walk(steps: int) -> numpy.ndarray:
    """Return three weights before training and after each step."""
    rng = numpy.random.default_rng(0)
    return rng.normal(size=(steps + 1, 3)).cumsum(axis=0).astype("float32")


def faint() -> numpy.ndarray:
    """Return steps that end near 1e-6 while their average is near 1e3."""
    return numpy.array([[1e3], [1e3], [3.1e-6]] * numpy.arange(1, 4), "float32")


def ticks(steps: int = CLOCK_STEPS) -> numpy.ndarray:
    """Return the completed fraction of the training, and its square."""
    fraction = numpy.arange(steps + 1) / steps
    return numpy.stack([fraction, fraction**2], axis=1).astype("float32")


def age_and_width(average) -> tuple[float, float]:
    """Mean age and width of an average of `ticks`, divided by all steps."""
    mean, square = map(float, average)
    return 1 - mean, max(0.0, square - mean**2) ** 0.5


def error(average, samples, decay: float, starts: str) -> float:
    """Relative error of an average against its definition."""
    skipped = 1 if starts == "at the first step" else 0
    initial, *steps = [[sample] for sample in samples[skipped:]]
    expected = reference.ema(steps, decay, initial=initial)
    return reference.relative_error([numpy.asarray(average)], expected)


def change(after, before) -> float:
    """Largest change in an array, relative to its largest element."""
    after, before = (numpy.asarray(a, "float64") for a in (after, before))
    return float(numpy.abs(after - before).max() / numpy.abs(before).max())


def count_updates(averages) -> int:
    """Number of averages that differ from the previous one."""
    return sum(
        not numpy.array_equal(one, other)
        for one, other in itertools.pairwise(averages)
    )
