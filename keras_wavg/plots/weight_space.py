"""Weights as vectors, and a plane through three of them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy

Array = Any
Weights = Sequence[Array]
"""Arrays in the order of `model.get_weights()`."""
Position = tuple[float, float]


class WeightSpace:
    """The floating-point weights of a model as one vector of float64."""

    def __init__(self, model: Any) -> None:
        self.model = model
        # Copies: what Keras gives may be JAX's own memory, donated to a step.
        self.own = [numpy.array(array) for array in model.get_weights()]
        self.floating = [
            keras.backend.is_float_dtype(weight.dtype)
            for weight in model.weights
        ]

    def vector(self, name: str, weights: Weights) -> Array:
        """Weights of the user as a vector."""
        arrays = [numpy.asarray(array) for array in weights]
        received = [array.shape for array in arrays]
        expected = [array.shape for array in self.own]
        if received != expected:
            raise ValueError(
                f"The weights of '{name}' must have the shapes of the model's, "
                f"{expected}. Received: {received}"
            )
        vector = numpy.concatenate(
            [a.ravel().astype("float64") for a in self._floats_of(arrays)]
        )
        if not numpy.isfinite(vector).all():
            raise ValueError(f"The weights of '{name}' must be finite.")
        return vector

    def enter(self, vector: Array) -> None:
        """Give the model the weights of a vector."""
        sizes = [array.size for array in self._floats_of(self.own)]
        parts = iter(numpy.split(vector, numpy.cumsum(sizes)[:-1]))
        self.model.set_weights(
            [
                next(parts).reshape(array.shape) if floating else array
                for array, floating in zip(self.own, self.floating, strict=True)
            ]
        )

    def _floats_of(self, arrays: Weights) -> list[Array]:
        both = zip(arrays, self.floating, strict=True)
        return [array for array, floating in both if floating]


class Frame:
    """Two orthonormal directions that span the plane of three vectors."""

    def __init__(self, vectors: Sequence[Array]) -> None:
        self.origin, second, third = vectors
        along, aside = second - self.origin, third - self.origin
        base = numpy.linalg.norm(along)
        widest = max(base, numpy.linalg.norm(aside))
        self.right = along / (base or 1.0)
        upwards = aside - (aside @ self.right) * self.right
        height = numpy.linalg.norm(upwards)
        # An average in float32 of two points lies a rounding off their line.
        if min(base, height) <= 1e-4 * widest:
            raise ValueError(
                "`points` must be three points that are not on one line. "
                f"Received: points {height:.3g} off a line of {widest:.3g}"
            )
        self.up = upwards / height
        self.corners = [
            (0.0, 0.0),
            (float(base), 0.0),
            (float(aside @ self.right), float(height)),
        ]

    def project(self, vector: Array) -> Position:
        """Where a vector falls on the plane."""
        offset = vector - self.origin
        return float(offset @ self.right), float(offset @ self.up)

    def vector(self, x: float, y: float) -> Array:
        """The vector at a position on the plane."""
        return self.origin + x * self.right + y * self.up
