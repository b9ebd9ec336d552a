"""Works on arrays block by block, in several threads."""

import errno
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from dataclasses import dataclass
from typing import Any

from keras_wavg.files.hdf5.structure import Array

BLOCK = 1 << 18
"""Largest block of an array that is not stored in chunks, in elements.

Checksums depend on it.
"""

_BATCH_BYTES = 4 << 20
_MAX_THREADS = 4

Progress = Callable[[int, int], None]
"""A function that is called with the bytes done and the bytes in total."""

Slices = tuple[slice, ...]
"""A part of an array, one slice for each axis."""

Process = tuple[int, int]
"""The index of this process, and the number of processes, which share the
blocks."""

SINGLE_PROCESS: Process = (0, 1)


@dataclass(frozen=True, slots=True)
class Block:
    """Contiguous elements of an array, or one of its chunks.

    Args:
        index: Integer, the position of the block among the blocks of all
            arrays.
        path: String, the path of the array.
        start: Integer, the first byte of the block in the array, or in the
            concatenation of its chunks.
        nbytes: Integer, the size of the block in bytes.
        slices: The `Slices` of a chunk. Empty if the array is not stored in
            chunks.
    """

    index: int
    path: str
    start: int
    nbytes: int
    slices: Slices = ()


def blocks(arrays: Mapping[str, Array]) -> Iterator[Block]:
    """Yield the blocks of arrays, in the order of their paths."""
    index = 0
    for path in sorted(arrays):
        array, start = arrays[path], 0
        parts = _chunks(array) if array.chunks else _contiguous_parts(array)
        for slices, count in parts:
            nbytes = count * array.itemsize
            yield Block(index, path, start, nbytes, slices)
            start += nbytes
            index += 1


def _contiguous_parts(array: Array) -> Iterator[tuple[Slices, int]]:
    for start in range(0, array.count, BLOCK):
        yield (), min(BLOCK, array.count - start)


def _chunks(array: Array) -> Iterator[tuple[Slices, int]]:
    axes = [
        [slice(at, min(at + step, size)) for at in range(0, size, step)]
        for size, step in zip(array.shape, array.chunks or (), strict=True)
    ]
    for slices in itertools.product(*axes):
        yield slices, math.prod(part.stop - part.start for part in slices)


def for_each_block(
    work: Callable[[Block], None],
    arrays: Mapping[str, Array],
    progress: Progress | None = None,
    process: Process = SINGLE_PROCESS,
) -> None:
    """Call a function for each block of arrays, in several threads.

    Args:
        work: Function of a `Block`.
        arrays: Dict from paths to `Array`s.
        progress: A `Progress`, called in the calling thread, or `None`.
            Defaults to `None`.
        process: The `Process`, which works on its share of the blocks. Defaults
            to a single process.

    Raises:
        OSError: If no thread can be started.
    """
    done = 0
    total = sum(array.nbytes for array in arrays.values()) // process[1]

    def work_on(batch: list[Block]) -> int:
        for block in batch:
            work(block)
        return sum(block.nbytes for block in batch)

    for nbytes in _results(work_on, _batches(arrays, process)):
        done += nbytes
        if progress is not None:
            progress(done, total)


def run_in_parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call a function for each item, in several threads.

    Args:
        work: Function of an item.
        items: Iterable of items.

    Raises:
        OSError: If no thread can be started.
    """
    for _ in _results(work, items):
        pass


def _results(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield results as they are ready, with few items queued at a time."""
    count = min(os.cpu_count() or 1, _MAX_THREADS)
    waiting: set[Future[Any]] = set()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.add(_submitted(pool, work, item))
                if len(waiting) == 2 * count:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            yield from (future.result() for future in as_completed(waiting))
        except BaseException:
            # After an error or Ctrl-C, the remaining items must not run.
            pool.shutdown(cancel_futures=True)
            raise


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], item: Any
) -> Future[Any]:
    try:
        return pool.submit(work, item)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "No thread can be started") from error


def _batches(
    arrays: Mapping[str, Array], process: Process
) -> Iterator[list[Block]]:
    """Yield batches large enough for the cost of submitting not to matter."""
    batch: list[Block] = []
    size = 0
    number, count = process
    for block in blocks(arrays):
        if block.index % count != number:
            continue
        batch.append(block)
        size += block.nbytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
