"""One block of the output from the same block of every file."""

import threading
from typing import Any

import numpy

from keras_wavg.files import floats
from keras_wavg.files.checksum import crc32, room_for_sums
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.output import Output
from keras_wavg.files.streaming import BLOCK, Block

_LARGEST_ITEM = 8


class Summing:
    """Reads, sums, checks and writes blocks, for several threads.

    Args:
        plan: A `FilePlan`.
        output: An `Output`.
        strict: Boolean, whether integers that differ are refused.
    """

    def __init__(self, plan: FilePlan, output: Output, *, strict: bool) -> None:
        self._plan = plan
        self._output = output
        self._strict = strict
        self._buffers = _Buffers()
        # Always the same, so that the order in which they are given is nothing.
        self._order = sorted(
            range(len(plan.checkpoints)),
            key=lambda i: (str(plan.checkpoints[i].path), self._factor(i)),
        )
        self._counted = [i for i in self._order if self._factor(i)]
        self._uncounted = [i for i in self._order if not self._factor(i)]
        self.arrays = {
            path: array
            for path, array in plan.arrays.items()
            if path in plan.last.weights
        }
        self.output_sums = room_for_sums(self.arrays)
        self.source_sums = [self.output_sums.copy() for _ in self._order]
        self.differing: set[str] = set()

    def work(self, block: Block) -> None:
        """Make a block of the output.

        Args:
            block: A `Block` of `arrays`.

        Raises:
            ValueError: If the files' blocks cannot be averaged.
        """
        if block.path in self._plan.averaged:
            made = self._mean(block)
        elif block.path in self._plan.compared:
            made = self._compared(block)
        else:
            made = self._read(len(self._order) - 1, block)
        self.output_sums[block.index] = crc32(made)
        self._output.slot(block.path).write(made.data, block.start)

    def _factor(self, number: int) -> float:
        return self._plan.factors.multipliers[number]

    def _read(self, number: int, block: Block) -> floats.Numbers:
        data = self._buffers.data[: block.nbytes]
        checkpoint = self._plan.checkpoints[number]
        checkpoint.read_into(block.path, data.data, block.start)
        self.source_sums[number][block.index] = crc32(data)
        return data

    @numpy.errstate(invalid="ignore", over="ignore")  # It is refused below.
    def _mean(self, block: Block) -> floats.Numbers:
        array = self.arrays[block.path]
        count = block.nbytes // array.itemsize
        kind = floats.accumulator(array.dtype)
        total, product = self._buffers.room(kind, count)
        first, *others = self._counted
        values = floats.decode(self._read(first, block), array.dtype)
        numpy.multiply(values, self._factor(first), out=total, dtype=kind)
        for number in others:
            values = floats.decode(self._read(number, block), array.dtype)
            if self._factor(number) != 1:
                factor = self._factor(number)
                values = numpy.multiply(values, factor, out=product, dtype=kind)
            numpy.add(total, values, out=total)
        for number in self._uncounted:  # for their checksums
            self._read(number, block)
        total /= kind(self._plan.factors.divisor)
        made = floats.encode(total, array.dtype)
        if not floats.is_finite(made, array.dtype):
            self._refuse_not_finite(block)
        return made

    def _compared(self, block: Block) -> floats.Numbers:
        last = len(self._order) - 1
        expected = self._read(last, block).copy()
        for number in range(last):
            if self._read(number, block).tobytes() != expected.tobytes():
                self._differ(block.path, number)
        return expected

    def _differ(self, path: str, number: int) -> None:
        array = self.arrays[path]
        is_quantized = array.dtype in {"int8", "uint8"} and array.shape
        is_strict = self._strict and not _is_state(path, array)
        if is_strict or is_quantized:
            one, two = self._plan.checkpoints[number], self._plan.last
            raise ValueError(
                "Variables of integers must be the same in all checkpoints, as "
                f"they cannot be averaged. Received: {path} ({array.dtype} of "
                f"shape {array.shape}), which differs between {one.name} and "
                f"{two.name}. "
                + (
                    "Average the weights from before quantization."
                    if is_quantized
                    else "Pass `strict=False` to take it from the last one."
                )
            )
        self.differing.add(path)

    def _refuse_not_finite(self, block: Block) -> None:
        dtype = self.arrays[block.path].dtype
        for number in self._counted:
            data = self._read(number, block)
            if not floats.is_finite(data, dtype):
                checkpoint = self._plan.checkpoints[number]
                checkpoint.source_of(block.path).refuse(
                    "it has NaN or infinite weights", block.path
                )
        raise ValueError(
            "The sum of weights must be within the range of their type. "
            f"Received: {block.path}, of {dtype}, where it is not. Lower the "
            "`weights`."
        )


def _is_state(path: str, array: Array) -> bool:
    """Whether integers are a count, or the state of random numbers."""
    owner = path.split("/")[-3:-2]
    return not array.shape or owner in (["seed_generator"], ["generator"])


class _Buffers(threading.local):
    """Memory of one thread, used again and again: new memory is slow."""

    def __init__(self) -> None:
        self.data = numpy.empty(BLOCK * _LARGEST_ITEM, "uint8")
        self._rooms: dict[type, tuple[Any, Any]] = {}

    def room(self, kind: type, count: int) -> tuple[Any, Any]:
        """Two arrays of a type, to be written over."""
        if kind not in self._rooms:
            self._rooms[kind] = _empty(kind), _empty(kind)
        total, product = self._rooms[kind]
        return total[:count], product[:count]


def _empty(kind: type) -> Any:
    return numpy.empty(BLOCK, kind)
