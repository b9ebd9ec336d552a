"""Small arrays are packed into one flat array."""

import keras
import numpy
from hypothesis import given
from hypothesis import strategies as st
from models import equal

from keras_wavg.averages.packing import SMALL, Packing

SHAPES = st.sampled_from(
    [(), (0,), (3,), (2, 2), (SMALL,), (SMALL + 1,), (1, 4, 1)]
)


@given(
    arrays=st.lists(st.tuples(SHAPES, st.booleans()), min_size=1, max_size=6)
)
def test_unpacking_returns_the_packed_arrays(arrays):
    shapes, packable = zip(*arrays, strict=True)
    packing = Packing(shapes, packable)
    values = [
        numpy.full(shape, index, "float32")
        for index, shape in enumerate(shapes)
    ]
    packed = packing.pack([keras.ops.convert_to_tensor(v) for v in values])
    assert equal(packing.unpack(packed), values)


def test_small_packable_arrays_become_one_array():
    shapes = ((SMALL,), (SMALL + 1,), (2, 2), (3,))
    packing = Packing(shapes, (True, True, False, True))
    arrays = [keras.ops.ones(shape) for shape in shapes]
    flat, *others = packing.pack(arrays)
    assert flat.shape == (SMALL + 3,)
    assert [tuple(array.shape) for array in others] == [(SMALL + 1,), (2, 2)]
