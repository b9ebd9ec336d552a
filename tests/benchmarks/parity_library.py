"""What each library is asked, wherever its average can follow given weights."""

import abc
import itertools

import numpy
import reference

DECAY = 0.9
# Of the training in which weights tell the time, see `ticks`.
CLOCK_STEPS = 1000


class Library(abc.ABC):
    """A column of the table: its methods are the checks, by their names.

    Args:
        begins: String, where the recursion starts by the documentation:
            `"before training"` or `"at the first step"`.
    """

    begins = "before training"

    @abc.abstractmethod
    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        """The average of weights that go through samples.

        Args:
            samples: Array, weights before training and after each step.
            decay: Float, of one step.
            corrected: Boolean, whether to use what the library has against
                too much weight of the start.
            dtype: String, of the weights. That of the average is the best that
                the library has for it.

        Returns:
            A float64 array.
        """

    def error_of_fifty_steps(self):
        samples = walk(50)
        return error(self.follow(samples), samples, DECAY, self.begins)

    def share_of_the_start(self):
        samples = numpy.zeros((51, 3), "float32")
        samples[:2] = 1
        return self.follow(samples, 0.999, corrected=True).max()

    def bfloat16(self):
        ones = 2 if self.begins == "at the first step" else 1
        samples = numpy.full((5000 + ones, 3), 2, "float32")
        samples[:ones] = 1
        return self.follow(samples, 0.999, dtype="bfloat16").max()

    def step_that_is_not_finite(self):
        samples = numpy.ones((10, 3), "float32")
        samples[5] = numpy.nan
        return self.follow(samples).max()


def walk(steps: int) -> numpy.ndarray:
    """Weights before training and after each step, three numbers each."""
    rng = numpy.random.default_rng(0)
    return rng.normal(size=(steps + 1, 3)).cumsum(axis=0).astype("float32")


def faint() -> numpy.ndarray:
    """Steps that leave weights near 1e-6, and an average near 1e3."""
    return numpy.array([[1e3], [1e3], [3.1e-6]] * numpy.arange(1, 4), "float32")


def ticks(steps: int = CLOCK_STEPS) -> numpy.ndarray:
    """The share of the training that is over, and its square."""
    share = numpy.arange(steps + 1) / steps
    return numpy.stack([share, share**2], axis=1).astype("float32")


def age_and_width(average) -> tuple[float, float]:
    """Mean age and its deviation, by all steps, of an average of `ticks`."""
    share, square = map(float, average)
    return 1 - share, max(0.0, square - share**2) ** 0.5


def error(average, samples, decay: float, begins: str) -> float:
    """Relative distance of an average from its definition."""
    skipped = 1 if begins == "at the first step" else 0
    initial, *steps = [[sample] for sample in samples[skipped:]]
    expected = reference.ema(steps, decay, initial=initial)
    return reference.relative_error([numpy.asarray(average)], expected)


def change(after, before) -> float:
    """Largest change in an array, as a share of its largest number."""
    after, before = (numpy.asarray(a, "float64") for a in (after, before))
    return float(numpy.abs(after - before).max() / numpy.abs(before).max())


def moved(averages) -> int:
    """How many of some averages differ from the one before."""
    return sum(
        not numpy.array_equal(one, other)
        for one, other in itertools.pairwise(averages)
    )
