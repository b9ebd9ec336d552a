"""What is not read is named, with the way to a file that is."""

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


def folder_with(*names):
    def write(path):
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).touch()

    return write


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("a.pt", write_torch, "a file of torch"),
        ("a.pth", lambda path: path.write_bytes(b"\x80\2"), "a file of torch"),
        ("a.weights.h5", write_torch, "a file of torch"),
        ("a.keras", write_torch, "a file of torch"),
        ("a.safetensors", write_safetensors, "a file of safetensors"),
        ("a.weights.h5", write_safetensors, "a file of safetensors"),
        ("a.h5", write_keras_2, "a file of Keras 2"),
        ("a.weights.h5", write_keras_2, "a file of Keras 2"),
        ("a.npz", write_numpy, "a file of NumPy"),
        ("ckpt.index", lambda path: path.touch(), "a checkpoint of TensorFlow"),
        ("tf", folder_with("checkpoint"), "a checkpoint of TensorFlow"),
        ("saved", folder_with("saved_model.pb"), "a SavedModel"),
        ("orbax", folder_with("_METADATA"), "a checkpoint of Orbax that Keras"),
        ("missing.safetensors", lambda path: None, "a file of safetensors"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(
    name, write, kind, tmp_path
):
    path = tmp_path / name
    write(path)
    output = tmp_path / "mean.weights.h5"
    for read in (
        lambda: inspect_checkpoint(path),
        lambda: average_checkpoints([path, path], output),
    ):
        with pytest.raises(ValueError, match=f"It is {kind}") as error:
            read()
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert not output.exists()


@pytest.mark.parametrize("scheme", ["gs", "s3", "https"])
def test_a_url_that_has_lost_a_slash_is_called_so(scheme, tmp_path):
    url = Path(f"{scheme}://bucket/a.weights.h5")
    with pytest.raises(ValueError, match="its URL as a string"):
        average_checkpoints([url, url], tmp_path / "mean.weights.h5")


def test_a_damaged_file_of_keras_is_of_no_other_kind(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a/vars/0", data=numpy.ones(3, "float32"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.weights\.h5") as error:
        inspect_checkpoint(path)
    assert "It is" not in str(error.value)
