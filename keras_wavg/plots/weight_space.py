"""Weights as vectors, and the plane through three of them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy

Array = Any
Weights = Sequence[Array]
"""Arrays in the order of `model.get_weights()`."""
Position = tuple[float, float]


class WeightSpace:
    """The floating-point weights of a model as one float64 vector.

    Args:
        model: A built Keras model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        # Copies: JAX reuses the memory of its arrays in a training step.
        self._weights = [numpy.array(array) for array in model.get_weights()]
        self._is_float = [
            keras.backend.is_float_dtype(weight.dtype)
            for weight in model.weights
        ]

    def vector(self, name: str, weights: Weights) -> Array:
        """Convert weights to a vector; `name` is for errors."""
        arrays = [numpy.asarray(array) for array in weights]
        received = [array.shape for array in arrays]
        expected = [array.shape for array in self._weights]
        if received != expected:
            raise ValueError(
                f"The weights of '{name}' must have the shapes of the weights "
                f"of the model, {expected}. Received: {received}"
            )
        vector = numpy.concatenate(
            [a.ravel().astype("float64") for a in self._floats(arrays)]
        )
        if not numpy.isfinite(vector).all():
            raise ValueError(
                f"The weights of '{name}' must be finite. Received: NaN or "
                "infinite elements"
            )
        return vector

    def assign(self, vector: Array) -> None:
        """Set the weights of the model to a vector."""
        sizes = [array.size for array in self._floats(self._weights)]
        parts = iter(numpy.split(vector, numpy.cumsum(sizes)[:-1]))
        self.model.set_weights(
            [
                next(parts).reshape(array.shape) if is_float else array
                for array, is_float in zip(
                    self._weights, self._is_float, strict=True
                )
            ]
        )

    def _floats(self, arrays: Weights) -> list[Array]:
        pairs = zip(arrays, self._is_float, strict=True)
        return [array for array, is_float in pairs if is_float]


class PlaneBasis:
    """Two orthonormal vectors that span the plane through three points.

    Args:
        vectors: Sequence of three vectors. The first is the origin.
    """

    def __init__(self, vectors: Sequence[Array]) -> None:
        self.origin, second, third = vectors
        to_second, to_third = second - self.origin, third - self.origin
        length = numpy.linalg.norm(to_second)
        scale = max(length, numpy.linalg.norm(to_third))
        self.x = to_second / (length or 1.0)
        orthogonal = to_third - (to_third @ self.x) * self.x
        height = numpy.linalg.norm(orthogonal)
        # The float32 average of two points is off their line by rounding.
        if min(length, height) <= 1e-4 * scale:
            raise ValueError(
                "`points` must be three points that are not on one line. "
                f"Received: a point {height:.3g} off a line of length "
                f"{scale:.3g}"
            )
        self.y = orthogonal / height
        self.points = [
            (0.0, 0.0),
            (float(length), 0.0),
            (float(to_third @ self.x), float(height)),
        ]

    def project(self, vector: Array) -> Position:
        """Return the coordinates of the projection of a vector."""
        offset = vector - self.origin
        return float(offset @ self.x), float(offset @ self.y)

    def vector(self, x: float, y: float) -> Array:
        """Return the vector at a position on the plane."""
        return self.origin + x * self.x + y * self.y
