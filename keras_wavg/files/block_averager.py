"""Averages the same block of every checkpoint."""

import numpy

from keras_wavg.files import floats
from keras_wavg.files.block_sum import BlockSum
from keras_wavg.files.buffers import BufferPool, Buffers
from keras_wavg.files.checksum import crc32, empty_checksums
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.open_output import CheckpointOutput
from keras_wavg.files.streaming import Block


class BlockAverager:
    """Reads, averages, checks and writes blocks, in several threads.

    Args:
        plan: A `FilePlan`.
        output: A `CheckpointOutput`.
        strict: Boolean, whether to refuse integers that differ.

    Attributes:
        arrays: Dict from the path of each weight of the output to its `Array`.
        output_crcs: Array of integers, the CRC-32 of each block of the output.
        source_crcs: List of such arrays, one for each checkpoint.
        differing: Set of the paths of integer variables that differ.
    """

    def __init__(
        self, plan: FilePlan, output: CheckpointOutput, *, strict: bool
    ) -> None:
        self._plan = plan
        self._output = output
        self._strict = strict
        self._pool = BufferPool()
        numerators = plan.coefficients.numerators
        # Sorted, so that the result does not depend on the order of the paths.
        order = sorted(
            range(len(plan.checkpoints)),
            key=lambda i: (str(plan.checkpoints[i].location), numerators[i]),
        )
        self._summed = [i for i in order if numerators[i]]
        self._unused = [i for i in order if not numerators[i]]
        self.arrays = {
            path: array
            for path, array in plan.arrays.items()
            if path in plan.last.weights
        }
        self.output_crcs = empty_checksums(self.arrays)
        self.source_crcs = [self.output_crcs.copy() for _ in plan.checkpoints]
        self.differing: set[str] = set()

    def average(self, block: Block) -> None:
        """Write a block of the output.

        Args:
            block: A `Block` of `arrays`.

        Raises:
            ValueError: If the block cannot be averaged.
        """
        with self._pool.buffers_for(block) as buffers:
            if block.path in self._plan.averaged:
                result = self._mean(block, buffers)
            elif block.path in self._plan.compared:
                result = self._compared(block, buffers)
            else:
                last = len(self._plan.checkpoints) - 1
                result = self._read(last, block, buffers)
            self.output_crcs[block.index] = crc32(result)
            self._output.write(result.data, block)

    def _read(
        self, number: int, block: Block, buffers: Buffers
    ) -> floats.Numbers:
        data = buffers.bytes(block.nbytes)
        self._plan.checkpoints[number].read_into(data.data, block)
        self.source_crcs[number][block.index] = crc32(data)
        return data

    def _mean(self, block: Block, buffers: Buffers) -> floats.Numbers:
        array, coefficients = self.arrays[block.path], self._plan.coefficients
        total = BlockSum(block.nbytes // array.itemsize, array.dtype, buffers)
        for number in self._summed:
            data = self._read(number, block, buffers)
            total.add(data, coefficients.numerators[number])
        for number in self._unused:  # for their checksums
            self._read(number, block, buffers)
        result = buffers.bytes(block.nbytes)
        if not total.divide_into(result, coefficients.denominator):
            self._refuse_not_finite(block, buffers)
        return result

    def _compared(self, block: Block, buffers: Buffers) -> floats.Numbers:
        last = len(self._plan.checkpoints) - 1
        expected = self._read(last, block, buffers).copy()
        for number in range(last):
            found = self._read(number, block, buffers)
            if not numpy.array_equal(found, expected):
                self._record_difference(block.path, number)
        return expected

    def _record_difference(self, path: str, number: int) -> None:
        array = self.arrays[path]
        is_quantized = array.dtype in {"int8", "uint8"} and array.shape
        is_strict = self._strict and not _is_state(path, array)
        if is_strict or is_quantized:
            first, second = self._plan.checkpoints[number], self._plan.last
            raise ValueError(
                "Integer variables must be the same in all checkpoints, as "
                f"they cannot be averaged. Received: {path} ({array.dtype} of "
                f"shape {array.shape}), which differs between {first.name} and "
                f"{second.name}. "
                + (
                    "Average the weights from before quantization."
                    if is_quantized
                    else "Pass `strict=False` to copy it from the last one."
                )
            )
        self.differing.add(path)

    def _refuse_not_finite(self, block: Block, buffers: Buffers) -> None:
        dtype = self.arrays[block.path].dtype
        for number in self._summed:
            data = self._read(number, block, buffers)
            if not floats.is_finite(data, dtype):
                self._plan.checkpoints[number].refuse(
                    "it has NaN or infinite weights", block.path
                )
        raise ValueError(
            "The weighted sum must be within the range of its type. Received: "
            f"{block.path} of type {dtype}, whose sum is not. Pass smaller "
            "`weights`."
        )


def _is_state(path: str, array: Array) -> bool:
    """Return whether integers are a count, or the state of a generator."""
    owner = path.split("/")[-3:-2]
    return not array.shape or owner in (["seed_generator"], ["generator"])
