"""Many files at once, a mebibyte at a time, by a few threads."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
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
        progress: See `Progress`.
    """
    queue = _Queue(work, arrays, progress)
    count = min(os.cpu_count() or 1, _MOST_THREADS)
    others = [threading.Thread(target=queue.run) for _ in range(count - 1)]
    try:
        for thread in others:
            thread.start()
        queue.run()
    finally:
        # After an error, or Ctrl-C, the others are not to go on.
        queue.stop()
        for thread in others:
            thread.join()
    if queue.error is not None:
        raise queue.error


class _Queue:
    def __init__(
        self,
        work: Callable[[Block], None],
        arrays: Mapping[str, Array],
        progress: Progress | None,
    ) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._blocks = blocks(arrays)
        self._lock = threading.Lock()
        self._progress = progress
        self._done = 0
        self._total = sum(array.nbytes for array in arrays.values())

    def run(self) -> None:
        try:
            while batch := self._next_batch():
                for block in batch:
                    self._work(block)
                self._count(batch)
        except BaseException as error:  # noqa: BLE001
            self.error = error
            self.stop()

    def stop(self) -> None:
        with self._lock:
            self._blocks = iter(())

    def _next_batch(self) -> list[Block]:
        # Many small blocks at a time: handing one out takes as long as it does.
        batch: list[Block] = []
        size = 0
        with self._lock:
            for block in self._blocks:
                batch.append(block)
                size += block.nbytes
                if size >= _BATCH_BYTES:
                    break
        return batch

    def _count(self, batch: list[Block]) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += sum(block.nbytes for block in batch)
                self._progress(self._done, self._total)
