"""Many files at once, a mebibyte at a time, by a few threads."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from dataclasses import dataclass

from keras_wavg.files.hdf5.structure import Array

BLOCK = 1 << 18
"""The most numbers that are worked on at once. Checksums depend on it."""

_BATCH_BYTES = 1 << 20
_MOST_THREADS = 4

Progress = Callable[[int, int], None]
"""Is called with the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring numbers of an array.

    Args:
        index: Integer, the place of the block among all.
        path: String, the path of the array.
        start: Integer, the first byte.
        nbytes: Integer, how many bytes there are.
    """

    index: int
    path: str
    start: int
    nbytes: int


def blocks(arrays: Mapping[str, Array]) -> Iterator[Block]:
    """Arrays cut in blocks, in the order of their paths."""
    index = 0
    for path in sorted(arrays):
        array = arrays[path]
        step = BLOCK * array.itemsize
        for start in range(0, array.nbytes, step):
            yield Block(index, path, start, min(step, array.nbytes - start))
            index += 1


def for_each(
    work: Callable[[Block], None],
    arrays: Mapping[str, Array],
    progress: Progress | None = None,
) -> None:
    """Do some work for each block of arrays.

    Args:
        work: Function of a `Block`, to be called by several threads.
        arrays: Dict from paths to `Array`s.
        progress: See `Progress`. It is called by this thread.

    Raises:
        OSError: If no thread can be started.
    """
    count = min(os.cpu_count() or 1, _MOST_THREADS)
    with ThreadPoolExecutor(count) as pool:
        try:
            done, total = 0, sum(array.nbytes for array in arrays.values())
            for nbytes in _in_parallel(pool, work, _batches(arrays), 2 * count):
                done += nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            # After an error, or Ctrl-C, the others are not to go on.
            pool.shutdown(cancel_futures=True)
            raise


def _in_parallel(
    pool: ThreadPoolExecutor,
    work: Callable[[Block], None],
    batches: Iterator[list[Block]],
    most: int,
) -> Iterator[int]:
    """The bytes of each batch, once it is done. So many wait at most."""

    def work_on(batch: list[Block]) -> int:
        for block in batch:
            work(block)
        return sum(block.nbytes for block in batch)

    waiting: set[Future[int]] = set()
    for batch in batches:
        try:
            waiting.add(pool.submit(work_on, batch))
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "No thread can be started") from error
        if len(waiting) == most:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)
    yield from (future.result() for future in as_completed(waiting))


def _batches(arrays: Mapping[str, Array]) -> Iterator[list[Block]]:
    """Blocks, as many at a time that handing them out takes no time."""
    batch: list[Block] = []
    size = 0
    for block in blocks(arrays):
        batch.append(block)
        size += block.nbytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
