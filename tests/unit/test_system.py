"""Calls of the operating system, and what does the same without them."""

import errno
import os
from pathlib import Path

import pytest

from keras_wavg import system


@pytest.mark.parametrize("is_posix", [True, False])
def test_bytes_are_read_and_written_at_their_places(
    is_posix, tmp_path, monkeypatch
):
    if not is_posix:
        for call in ("_preadv", "_pwrite", "_advise"):
            monkeypatch.setattr(system, call, None)
    path = tmp_path / "a"
    descriptor = system.open_to_write(path)
    assert system.write_at(descriptor, memoryview(b"later"), 5) == 5
    assert system.write_at(descriptor, memoryview(b"first"), 0) == 5
    system.begin_to_store(descriptor, 0, 10)
    os.close(descriptor)
    system.store(path)
    system.store(tmp_path)
    descriptor = system.open_to_read(path)
    data = bytearray(6)
    assert system.read_at(descriptor, memoryview(data), 4) == 6
    assert bytes(data) == b"tlater"
    assert system.read_at(descriptor, memoryview(data), 8) == 2
    assert system.read_at(descriptor, memoryview(data), 10) == 0
    os.close(descriptor)


def test_errors_name_a_file_if_they_name_none():
    def text_of(*arguments):
        with pytest.raises(OSError) as error:  # noqa: PT011
            system.raise_with_name(OSError(*arguments), Path("a.weights.h5"))
        return str(error.value)

    assert text_of(errno.ENOSPC, "full").endswith("full: 'a.weights.h5'")
    assert text_of(errno.ENOSPC, "full", "other").endswith("full: 'other'")
    assert text_of("a text") == "a text"


def test_a_file_that_cannot_be_moved_leaves_no_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_link", None)
    with pytest.raises(FileNotFoundError):
        system.move_to_free_place(tmp_path / "missing", tmp_path / "new")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_has_one_lock(tmp_path, monkeypatch):
    with system.locked(tmp_path) as first, system.locked(tmp_path) as second:
        assert (first, second) == (os.name != "nt", False)
    monkeypatch.setattr(system, "fcntl", None)
    with system.locked(tmp_path) as found:
        assert not found
