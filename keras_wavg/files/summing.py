"""One block of the output from the same block of every file."""

import numpy

from keras_wavg.files import floats
from keras_wavg.files.buffers import BufferPool, Buffers
from keras_wavg.files.checksum import crc32, room_for_sums
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.outputs import Written
from keras_wavg.files.streaming import Block
from keras_wavg.files.total import Total


class Summing:
    """Reads, sums, checks and writes blocks, for several threads.

    Args:
        plan: A `FilePlan`.
        output: A `Written`.
        strict: Boolean, whether integers that differ are refused.
    """

    def __init__(
        self, plan: FilePlan, output: Written, *, strict: bool
    ) -> None:
        self._plan = plan
        self._output = output
        self._strict = strict
        self._pool = BufferPool()
        # Always the same, so that the order in which they are given is nothing.
        self._order = sorted(
            range(len(plan.checkpoints)),
            key=lambda i: (str(plan.checkpoints[i].given), self._factor(i)),
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
        with self._pool.of(block) as buffers:
            if block.path in self._plan.averaged:
                made = self._mean(block, buffers)
            elif block.path in self._plan.compared:
                made = self._compared(block, buffers)
            else:
                made = self._read(len(self._order) - 1, block, buffers)
            self.output_sums[block.index] = crc32(made)
            self._output.write(made.data, block)

    def _factor(self, number: int) -> float:
        return self._plan.factors.multipliers[number]

    def _read(
        self, number: int, block: Block, buffers: Buffers
    ) -> floats.Numbers:
        data = buffers.bytes(block.nbytes)
        self._plan.checkpoints[number].read_into(data.data, block)
        self.source_sums[number][block.index] = crc32(data)
        return data

    def _mean(self, block: Block, buffers: Buffers) -> floats.Numbers:
        array = self.arrays[block.path]
        total = Total(block.nbytes // array.itemsize, array.dtype, buffers)
        for number in self._counted:
            total.add(self._read(number, block, buffers), self._factor(number))
        for number in self._uncounted:  # for their checksums
            self._read(number, block, buffers)
        made = buffers.bytes(block.nbytes)
        if not total.divide_into(made, self._plan.factors.divisor):
            self._refuse_not_finite(block, buffers)
        return made

    def _compared(self, block: Block, buffers: Buffers) -> floats.Numbers:
        last = len(self._order) - 1
        expected = self._read(last, block, buffers).copy()
        for number in range(last):
            found = self._read(number, block, buffers)
            if not numpy.array_equal(found, expected):
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

    def _refuse_not_finite(self, block: Block, buffers: Buffers) -> None:
        dtype = self.arrays[block.path].dtype
        for number in self._counted:
            data = self._read(number, block, buffers)
            if not floats.is_finite(data, dtype):
                self._plan.checkpoints[number].refuse(
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
