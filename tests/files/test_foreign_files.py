"""Unsupported files are recognized, with instructions to convert them."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import numpy
import pytest

from keras_wavg import average_checkpoints, inspect_checkpoint


def write_torch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


def write_safetensors(path):
    head = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


def write_keras_2(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        file.create_group("a").attrs["weight_names"] = [b"a/kernel:0"]


def write_numpy(path):
    with path.open("wb") as file:
        numpy.save(file, numpy.ones(3))


def directory_with(*names):
    def write(path):
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).touch()

    return write


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.pt", write_torch, "a torch file"),
        ("a.pth", lambda path: path.write_bytes(b"\x80\2"), "a torch file"),
        ("a.weights.h5", write_torch, "a torch file"),
        ("a.keras", write_torch, "a torch file"),
        ("a.safetensors", write_safetensors, "a safetensors file"),
        ("a.weights.h5", write_safetensors, "a safetensors file"),
        ("a.h5", write_keras_2, "a Keras 2 file"),
        ("a.weights.h5", write_keras_2, "a Keras 2 file"),
        ("a.npz", write_numpy, "a NumPy file"),
        ("ckpt.index", lambda path: path.touch(), "a TensorFlow checkpoint"),
        ("tf", directory_with("checkpoint"), "a TensorFlow checkpoint"),
        ("saved", directory_with("saved_model.pb"), "a SavedModel"),
        (
            "orbax",
            directory_with("_METADATA"),
            "an Orbax checkpoint that",
        ),
        ("missing.safetensors", lambda path: None, "a safetensors file"),
    ],
)
def test_an_unsupported_format_is_named(name, write, expected, tmp_path):
    path = tmp_path / name
    write(path)
    output = tmp_path / "mean.weights.h5"
    for read in (
        lambda: inspect_checkpoint(path),
        lambda: average_checkpoints([path, path], output),
    ):
        with pytest.raises(ValueError, match=f"It is {expected}") as error:
            read()
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert not output.exists()


@pytest.mark.parametrize("scheme", ["gs", "s3", "https"])
def test_a_url_that_was_passed_as_a_path_is_reported(scheme, tmp_path):
    url = Path(f"{scheme}://bucket/a.weights.h5")
    with pytest.raises(ValueError, match="pass the URL as a string"):
        average_checkpoints([url, url], tmp_path / "mean.weights.h5")


def test_a_damaged_keras_file_is_not_taken_for_another_format(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a/vars/0", data=numpy.ones(3, "float32"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.weights\.h5") as error:
        inspect_checkpoint(path)
    assert "It is" not in str(error.value)
