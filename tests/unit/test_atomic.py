"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from keras_wavg import atomic


def test_an_index_is_gone_while_its_parts_are_replaced(tmp_path, monkeypatch):
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


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
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
