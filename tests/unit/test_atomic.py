"""Files and directories are written atomically."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keras_wavg import atomic, system


def test_an_index_is_missing_while_its_parts_are_replaced(
    tmp_path, monkeypatch
):
    """A kill between two moves leaves no index that names the wrong parts."""
    index = tmp_path / "a.weights.json"
    index.write_text("old")
    moved, replace = [], Path.replace

    def move(path, target):
        assert not index.exists()
        moved.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", move)
    with atomic.replacing(index) as written:
        written.write_text("new")
        written.with_name("part").touch()
    assert moved == ["part", index.name]
    assert index.read_text() == "new"


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_text("old")

    def write_and_fail():
        with atomic.replacing(path) as written:
            written.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write(path, text, *, before_moving=lambda: None, **options):
    """Write a file and a part of it."""
    with atomic.replacing(path, **options) as new:
        new.write_text(text)
        new.with_name("part").write_text(text)
        before_moving()


@pytest.mark.parametrize("name", ["part", "a.json"])
def test_a_file_of_another_process_is_not_replaced(name, tmp_path):
    path, other = tmp_path / "a.json", tmp_path / name
    with pytest.raises(FileExistsError, match=f"{name}', which another"):
        write(
            path,
            "new",
            before_moving=lambda: other.write_text("old"),
            overwrite=False,
        )
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert other.read_text() == "old"


@pytest.mark.parametrize("with_links", [True, False])
def test_files_are_written_without_replacing(with_links, tmp_path, monkeypatch):
    if not with_links:
        monkeypatch.setattr(system, "_link", None)
    path = tmp_path / "a.json"
    write(path, "new", overwrite=False)
    assert {file.name for file in tmp_path.iterdir()} == {"part", "a.json"}
    assert path.read_text() == "new"
    with pytest.raises(FileExistsError):
        write(path, "newer", overwrite=False)
    assert path.read_text() == "new"
    assert path.with_name("part").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="files have no modes")
def test_a_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "a.json"
    write(path, "old")
    path.chmod(0o600)
    path.with_name("part").chmod(0o640)
    write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_name("part").stat().st_mode) == 0o640


KILLED = """
import os, pathlib, signal, sys
from keras_wavg import atomic, system
with atomic.replacing(sys.argv[1]) as written:
    written.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="directories cannot be locked")
def test_the_next_process_removes_files_of_a_killed_process(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    for target in (path, other):
        subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    assert len([*tmp_path.iterdir()]) == 2
    write(path, "new")
    names = {file.name for file in tmp_path.iterdir()}
    assert len(names - {"a.json", "part"}) == 1
    write(other, "new")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"a.json", "b.json", "part"}


def test_files_of_a_running_process_are_kept(tmp_path):
    path = tmp_path / "a.json"
    with atomic.replacing(path) as outer:
        outer.write_text("outer")
        write(path, "inner")
        assert outer.read_text() == "outer"
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


def test_a_link_to_itself_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.symlink_to(path)
    with pytest.raises(FileExistsError):
        write(path, "new", overwrite=False)


def test_several_threads_write_one_file(tmp_path):
    def write_often(number):
        for _ in range(50):
            with atomic.replacing(tmp_path / "a") as new:
                new.write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_often, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
