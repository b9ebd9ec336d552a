"""Operating system calls, and their substitutes."""

import errno
import os
from pathlib import Path

import pytest

from keras_wavg import system


@pytest.mark.parametrize("is_posix", [True, False])
def test_bytes_are_read_and_written_at_an_offset(
    is_posix, tmp_path, monkeypatch
):
    if not is_posix:
        for call in ("_preadv", "_pwrite", "_fadvise"):
            monkeypatch.setattr(system, call, None)
    path = tmp_path / "a"
    descriptor = system.open_to_write(path)
    system.write_all(descriptor, memoryview(b"later"), 5)
    system.write_all(descriptor, memoryview(b"first"), 0)
    system.start_writeback(descriptor, 0, 10)
    os.close(descriptor)
    system.flush_to_disk(path)
    system.flush_to_disk(tmp_path)
    descriptor = system.open_to_read(path)
    data = bytearray(6)
    assert system.read_at(descriptor, memoryview(data), 4) == 6
    assert bytes(data) == b"tlater"
    assert system.read_at(descriptor, memoryview(data), 8) == 2
    assert system.read_at(descriptor, memoryview(data), 10) == 0
    os.close(descriptor)


def test_an_error_without_a_path_gets_one():
    def message(*arguments):
        with pytest.raises(OSError) as error:  # noqa: PT011
            system.raise_with_path(OSError(*arguments), Path("a.weights.h5"))
        return str(error.value)

    assert message(errno.ENOSPC, "full").endswith("full: 'a.weights.h5'")
    assert message(errno.ENOSPC, "full", "other").endswith("full: 'other'")
    assert message("a text") == "a text"


def test_a_failed_move_leaves_no_empty_file(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_link", None)
    with pytest.raises(FileNotFoundError):
        system.move_without_replacing(tmp_path / "missing", tmp_path / "new")
    assert [*tmp_path.iterdir()] == []


def test_a_directory_has_one_lock(tmp_path, monkeypatch):
    with (
        system.directory_lock(tmp_path) as first,
        system.directory_lock(tmp_path) as second,
    ):
        assert (first, second) == (os.name != "nt", False)
    monkeypatch.setattr(system, "fcntl", None)
    with system.directory_lock(tmp_path) as is_locked:
        assert not is_locked
