"""Many files at once, a mebibyte or a chunk at a time, by a few threads."""

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
"""The size of the largest block, in numbers, but for that of a chunk.

Checksums depend on it.
"""

_BATCH_BYTES = 4 << 20
_MOST_THREADS = 4

Progress = Callable[[int, int], None]
"""Is called with the bytes done and the bytes in all."""


Box = tuple[slice, ...]
"""Which part of an array it is, along each axis."""


Share = tuple[int, int]
"""The number of this process, from 0 on, and how many share the blocks."""

WHOLE: Share = (0, 1)


@dataclass(frozen=True, slots=True)
class Block:
    """Some numbers of an array: neighbouring ones, or those of a chunk.

    Args:
        index: Integer, the place of the block among all.
        path: String, the path of the array.
        start: Integer, the first byte, with the chunks one after the other.
        nbytes: Integer, how many bytes there are.
        box: See `Box`. Empty where the array is not stored in chunks.
    """

    index: int
    path: str
    start: int
    nbytes: int
    box: Box = ()


def blocks(arrays: Mapping[str, Array]) -> Iterator[Block]:
    """Arrays cut in blocks, in the order of their paths."""
    index = 0
    for path in sorted(arrays):
        array, start = arrays[path], 0
        for box, count in _chunks(array) if array.chunks else _pieces(array):
            nbytes = count * array.itemsize
            yield Block(index, path, start, nbytes, box)
            start += nbytes
            index += 1


def _pieces(array: Array) -> Iterator[tuple[Box, int]]:
    for start in range(0, array.count, BLOCK):
        yield (), min(BLOCK, array.count - start)


def _chunks(array: Array) -> Iterator[tuple[Box, int]]:
    axes = [
        [slice(at, min(at + step, size)) for at in range(0, size, step)]
        for size, step in zip(array.shape, array.chunks or (), strict=True)
    ]
    for box in itertools.product(*axes):
        yield box, math.prod(part.stop - part.start for part in box)


def for_each(
    work: Callable[[Block], None],
    arrays: Mapping[str, Array],
    progress: Progress | None = None,
    share: Share = WHOLE,
) -> None:
    """Do some work for each block of arrays.

    Args:
        work: Function of a `Block`, to be called by several threads.
        arrays: Dict from paths to `Array`s.
        progress: See `Progress`. It is called by this thread.
        share: See `Share`. Defaults to all.

    Raises:
        OSError: If no thread can be started.
    """
    done = 0
    total = sum(array.nbytes for array in arrays.values()) // share[1]

    def work_on(batch: list[Block]) -> int:
        for block in batch:
            work(block)
        return sum(block.nbytes for block in batch)

    for nbytes in _results(work_on, _batches(arrays, share)):
        done += nbytes
        if progress is not None:
            progress(done, total)


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Do some work for each item.

    Args:
        work: Function of an item, to be called by several threads.
        items: What there is to do.

    Raises:
        OSError: If no thread can be started.
    """
    for _ in _results(work, items):
        pass


def _results(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What work returns, as it ends. Few items wait at a time."""
    count = min(os.cpu_count() or 1, _MOST_THREADS)
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
            # After an error, or Ctrl-C, the others are not to go on.
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
    arrays: Mapping[str, Array], share: Share
) -> Iterator[list[Block]]:
    """Blocks, as many at a time that handing them out takes no time."""
    batch: list[Block] = []
    size = 0
    number, count = share
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
