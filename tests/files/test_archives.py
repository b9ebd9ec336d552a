"""`.keras` files are zip archives. Damaged ones are refused."""

import struct
import zipfile

import numpy
import pytest
import weights_files

from keras_wavg import (
    average_checkpoints,
    diff_checkpoints,
    inspect_checkpoint,
)

MEMBER = "model.weights.h5"
KERNEL = numpy.arange(600_000, dtype="float32").reshape(600, 1000)
OPTIMIZER_STATE = numpy.arange(7, 5007, dtype="float32")
ARRAYS = {
    "layers/dense/vars/0": KERNEL,
    "layers/dense/vars/1": numpy.ones(3, "float32"),
    "optimizer/vars/0": OPTIMIZER_STATE,
}


@pytest.fixture
def archive(tmp_path):
    return weights_files.write(tmp_path / "a.keras", ARRAYS)


@pytest.fixture
def undamaged(tmp_path):
    return weights_files.write(tmp_path / "b.weights.h5", ARRAYS)


def flip_bit(path, part):
    """Flip one bit in the first byte of a part of a file."""
    data = bytearray(path.read_bytes())
    at = data.find(part)
    assert at > 0
    data[at] ^= 0x40
    path.write_bytes(data)


def readers(archive, undamaged):
    """All functions that read the weights of an archive."""
    output = archive.with_name("mean.weights.h5")
    return {
        "average": lambda: average_checkpoints([archive, undamaged], output),
        "inspect": lambda: inspect_checkpoint(archive),
        "diff": lambda: diff_checkpoints(undamaged, archive),
    }


@pytest.mark.parametrize("reader", ["average", "inspect", "diff"])
@pytest.mark.parametrize(
    "part",
    [
        KERNEL[300].tobytes(),
        numpy.ones(3, "float32").tobytes(),
        OPTIMIZER_STATE[10:900].tobytes(),
        b"dense",
    ],
    ids=["large", "small", "optimizer", "metadata"],
)
def test_a_flipped_bit_is_detected(part, reader, archive, undamaged):
    read = readers(archive, undamaged)[reader]
    read()
    archive.with_name("mean.weights.h5").unlink(missing_ok=True)
    flip_bit(archive, part)
    with pytest.raises(ValueError, match=r"a\.keras"):
        read()
    names = {path.name for path in archive.parent.iterdir()}
    assert names == {"a.keras", "b.weights.h5"}


def test_a_flipped_bit_of_the_config_is_detected(archive, undamaged):
    output = archive.with_name("mean.keras")
    flip_bit(archive, weights_files.CONFIG.encode()[2:])
    with pytest.raises(ValueError, match=r"a\.keras"):
        average_checkpoints([undamaged, archive], output)
    assert not output.exists()


@pytest.mark.parametrize("byte", [0, 8, 26, 30], ids=str)
def test_a_wrong_header_of_the_weights_is_refused(byte, archive):
    """Signature, compression method, length of the name, name."""
    with zipfile.ZipFile(archive) as opened:
        at = opened.getinfo(MEMBER).header_offset
    data = bytearray(archive.read_bytes())
    data[at + byte] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.keras"):
        inspect_checkpoint(archive)


def test_an_archive_after_other_bytes_is_read(archive):
    """`zipfile` reads it too."""
    before = inspect_checkpoint(archive).checksum
    archive.write_bytes(b"x" * 100 + archive.read_bytes())
    assert inspect_checkpoint(archive).checksum == before


def test_a_long_list_of_members_is_refused_without_reading_it(archive):
    data = archive.read_bytes()
    end = data.rfind(b"PK\5\6")
    start = struct.unpack_from("<I", data, end + 16)[0]
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, *[0] * 16)
    count = 100_000
    members = data[start:end] + entry * count
    size, offset = len(members), len(data[:start])
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, size, offset, 0)
    archive.write_bytes(data[:start] + members + tail)
    with pytest.raises(ValueError, match="list of its members is too long"):
        inspect_checkpoint(archive)
