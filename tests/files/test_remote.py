"""Remote checkpoints are read and written by URL."""

import sys

import fsspec
import numpy
import orbax_files
import pytest
import weights_files
from typer.testing import CliRunner

from keras_wavg import (
    average_checkpoints,
    diff_checkpoints,
    inspect_checkpoint,
    select_checkpoints,
)
from keras_wavg.cli import app
from keras_wavg.files import remote

KERNEL = "layers/dense/vars/0"
IN_ORBAX = "trainable_variables/dense/kernel"


@pytest.fixture
def memory():
    """A file system in memory that represents a remote one."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    return filesystem


def values(seed, size=1000):
    return numpy.random.default_rng(seed).normal(size=size).astype("float32")


def upload(memory, directory, tmp_path, suffix, count=3):
    """Upload checkpoints of a format, and return their URLs."""
    for seed in range(count):
        arrays = {KERNEL: values(seed), "layers/dense/vars/1": values(9)}
        if suffix == "":
            arrays = {IN_ORBAX: values(seed)}
            orbax_files.write(tmp_path / "local" / str(seed), arrays)
        else:
            (tmp_path / "local").mkdir(exist_ok=True)
            weights_files.write(tmp_path / "local" / f"{seed}{suffix}", arrays)
    for file in (tmp_path / "local").rglob("*"):
        if file.is_file():
            name = file.relative_to(tmp_path / "local").as_posix()
            memory.pipe_file(f"/{directory}/{name}", file.read_bytes())
    return [f"memory://{directory}/{seed}{suffix}" for seed in range(count)]


def mean(count=3):
    total = sum(values(seed).astype("float64") for seed in range(count))
    return (total / count).astype("float32")


def check_mean(urls, output):
    """Average, and compare with NumPy."""
    report = average_checkpoints(urls, output)
    got = weights_files.read(output)
    assert numpy.array_equal(got[KERNEL], mean())
    return report


@pytest.mark.parametrize("suffix", weights_files.SUFFIXES)
def test_files_of_every_format_are_read_by_url(memory, tmp_path, suffix):
    urls = upload(memory, "run", tmp_path, suffix)
    report = check_mean(urls, tmp_path / f"mean{suffix}")
    assert [str(source.path) for source in report.sources] == urls
    assert not diff_checkpoints(
        urls[0], tmp_path / f"mean{suffix}"
    ).weights_equal


@pytest.mark.parametrize("suffix", [*weights_files.SUFFIXES, ""])
def test_an_average_is_written_to_a_url(memory, tmp_path, suffix):
    urls = upload(memory, "run", tmp_path, suffix)
    output = f"memory://out/mean{suffix}"
    report = average_checkpoints(urls, output)
    assert inspect_checkpoint(output).checksum == report.checksum
    assert inspect_checkpoint(output).is_unchanged
    before = dict(memory.store)
    with pytest.raises(FileExistsError, match="overwrite"):
        average_checkpoints(urls[1:], output)
    assert memory.store == before
    average_checkpoints(urls[1:], output, overwrite=True)
    assert inspect_checkpoint(output).checksum != report.checksum
    source = urls[0] if suffix else "memory://run"
    with pytest.raises(ValueError, match="Choose another name"):
        average_checkpoints(urls, source, overwrite=True)


def test_files_are_copied_in_ranges(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_RANGE", 1000)
    urls = upload(memory, "run", tmp_path, ".weights.h5")
    check_mean(urls, tmp_path / "mean.weights.h5")


def test_a_server_that_ignores_ranges_is_supported(
    memory, tmp_path, monkeypatch
):
    urls = upload(memory, "run", tmp_path, ".weights.h5")
    read_all = type(memory).cat_file

    def without_ranges(self, path, start=None, end=None, **kwargs):
        return read_all(self, path)

    monkeypatch.setattr(remote, "_RANGE", 1000)
    monkeypatch.setattr(type(memory), "cat_file", without_ranges)
    check_mean(urls, tmp_path / "mean.weights.h5")


def test_a_file_that_changes_while_it_is_copied_is_refused(
    memory, tmp_path, monkeypatch
):
    urls = upload(memory, "run", tmp_path, ".weights.h5")
    read = type(memory).cat_file

    def read_and_change(self, path, start=None, end=None, **kwargs):
        data = read(self, path, start=start, end=end)
        self.pipe_file(path, read(self, path))  # equal bytes with a later time
        return data

    monkeypatch.setattr(type(memory), "cat_file", read_and_change)
    with pytest.raises(ValueError, match="must not change"):
        average_checkpoints(urls, tmp_path / "mean.weights.h5")
    assert not (tmp_path / "mean.weights.h5").exists()


def test_errors_name_the_url(memory, tmp_path):
    urls = upload(memory, "run", tmp_path, ".weights.h5")
    memory.pipe_file("/run/1.weights.h5", b"\x89HDF")
    with pytest.raises(ValueError, match=r"memory:.*run/1"):
        average_checkpoints(urls, tmp_path / "mean.weights.h5")
    bad = {KERNEL: numpy.full(1000, numpy.nan, "float32")}
    file = weights_files.write(tmp_path / "bad.weights.h5", bad)
    memory.put(str(file), "/run/bad.weights.h5")
    with pytest.raises(ValueError, match=r"memory:.*run/bad.*NaN"):
        average_checkpoints(
            ["memory://run/bad.weights.h5"], tmp_path / "mean.weights.h5"
        )
    with pytest.raises(FileNotFoundError, match="missing"):
        inspect_checkpoint("memory://run/missing.weights.h5")


def test_network_errors_become_an_os_error_of_one_line(
    memory, tmp_path, monkeypatch
):
    class NoCredentialsError(Exception):
        pass

    def info(*args, **kwargs):
        message = "no credentials\nfor this"
        raise NoCredentialsError(message)

    urls = upload(memory, "run", tmp_path, ".keras")
    monkeypatch.setattr(type(memory), "info", info)
    with pytest.raises(OSError, match="no credentials for this"):
        average_checkpoints(urls, tmp_path / "mean.keras")
    done = CliRunner().invoke(app, ["inspect", urls[0]])
    assert done.exit_code == 3


def test_checkpoints_in_a_remote_directory_are_selected(memory, tmp_path):
    upload(memory, "run", tmp_path, ".keras")
    chosen = select_checkpoints("memory://run", last=2)
    assert [path.name for path in chosen] == ["1.keras", "2.keras"]
    average_checkpoints(chosen, tmp_path / "mean.keras")
    upload(memory, "orbax", tmp_path / "orbax", "")
    chosen = select_checkpoints("memory://orbax", last=2)
    assert [path.name for path in chosen] == ["1", "2"]
    report = average_checkpoints(
        ["memory://orbax"], tmp_path / "mean", steps=[0, 1, 2]
    )
    got = orbax_files.read(tmp_path / "mean" / "2")
    assert numpy.array_equal(got[IN_ORBAX], mean())
    assert len(report.sources) == 3


def test_the_command_line_accepts_urls(memory, tmp_path):
    urls = upload(memory, "run", tmp_path, ".weights.h5")
    output = "memory://out/mean.weights.h5"
    done = CliRunner().invoke(app, ["average", *urls, "-o", output])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["inspect", output]).exit_code == 0
    done = CliRunner().invoke(app, ["average", *urls, "-o", output])
    assert done.exit_code == 3


def test_an_error_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(ImportError, match=r"keras-wavg\[remote\]"):
        inspect_checkpoint("s3://bucket/a.keras")
    done = CliRunner().invoke(app, ["inspect", "s3://bucket/a.keras"])
    assert done.exit_code == 2
    assert "keras-wavg[remote]" in " ".join(done.output.split())
