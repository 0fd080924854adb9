"""The reader and writer agree with the reference library, and refuse every damaged file."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from la_trt.errors import CheckpointError, MachineError
from la_trt.files.safetensors import DTYPES, SafetensorsFile
from la_trt.files.safetensors_writer import HugePageWriter, TensorSource, write_safetensors
from tests.files.samples import header_of, save_arrays, set_header

F32 = np.dtype("<f4")


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {
        f"t.{code}": (rng.standard_normal((3, 7)) * 50).astype(dtype)
        for code, dtype in DTYPES.items()
    }
    arrays["scalar"] = np.array(2.5, F32)
    arrays["empty"] = np.zeros((0, 4), np.float16)
    arrays["odd"] = np.arange(111, dtype=np.uint8)
    return arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_arrays(file, {"a": np.arange(6, dtype=F32).reshape(2, 3), "b": np.arange(4, dtype=F32)})
    return file


def test_round_trip_keeps_every_dtype_and_bit(tmp_path: Path) -> None:
    arrays = sample()
    save_arrays(tmp_path / "x", arrays, metadata={"made": "by us"})
    file = SafetensorsFile(tmp_path / "x")
    assert set(file.names()) == set(arrays)
    assert file.metadata["made"] == "by us"
    for name, array in arrays.items():
        view = file.tensor(name)
        assert view.dtype == array.dtype
        assert view.shape == array.shape
        assert view.tobytes() == array.tobytes()
        assert not view.flags.writeable


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays = sample()
    save_arrays(tmp_path / "x", arrays)
    loaded = safetensors.numpy.load_file(tmp_path / "x")
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_we_read_what_the_reference_library_writes(tmp_path: Path) -> None:
    arrays = sample()
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata={"k": "v"})
    file = SafetensorsFile(tmp_path / "x")
    assert file.metadata == {"k": "v"}
    for name, array in arrays.items():
        assert file.tensor(name).tobytes() == array.tobytes()


def test_tensors_are_views_of_one_map(path: Path) -> None:
    file = SafetensorsFile(path)
    first, again = file.tensor("a"), file.tensor("a")
    assert first.ctypes.data == again.ctypes.data
    assert file.tensor("b").ctypes.data == first.ctypes.data + first.nbytes
    assert first.ctypes.data % 64 == 0
    file.release("a")
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_misplaced_tensor_comes_as_aligned_copy(tmp_path: Path) -> None:
    path = tmp_path / "x"
    header = {
        "u": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "f": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    values = np.array([1.5, -2.0], F32)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + values.tobytes())
    array = SafetensorsFile(path).tensor("f")
    assert array.flags.aligned
    assert not array.flags.writeable
    assert array.tolist() == [1.5, -2.0]


def test_writer_streams_pieces(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_safetensors(
        tmp_path / "x",
        [TensorSource("t", F32, (19, 5), lambda: (np.full((1, 5), i, F32) for i in range(19)))],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(20 * (row + 1), 380) for row in range(19)]
    expected = np.repeat(np.arange(19, dtype=F32)[:, None], 5, 1)
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").tensor("t"), expected)


def test_writing_and_scanning_hold_one_piece_in_memory(tmp_path: Path) -> None:
    """48 MiB through pieces of 1 MiB: numpy never holds more than a few of them."""
    sources = [
        TensorSource(
            f"t{i}", F32, (16, 1 << 18), lambda: (np.ones(1 << 18, F32) for _ in range(16))
        )
        for i in range(3)
    ]
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "x", sources)
        written = tracemalloc.get_traced_memory()[1]
        file = SafetensorsFile(tmp_path / "x")
        total = sum(float(file.tensor(name)[3, 5]) for name in file.names())
        viewed = tracemalloc.get_traced_memory()[1]
        assert [file.non_finite(name) for name in file.names()] == [None] * 3
        scanned = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 3.0
    assert written < 4 << 20
    assert viewed < 4 << 20
    assert scanned < 32 << 20


def test_writer_takes_strided_arrays(tmp_path: Path) -> None:
    array = np.arange(24, dtype=F32).reshape(4, 6)[::2, ::-1].T
    save_arrays(tmp_path / "x", {"t": array})
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").tensor("t"), array)


@pytest.mark.parametrize(
    ("produced", "message"),
    [
        (np.zeros((3, 2), F32), "declared shape"),
        (np.zeros((2, 3), np.float16), "declared float32"),
        ([np.zeros(5, F32)], "4 bytes fewer"),
        ([np.zeros(5, F32), np.zeros(2, F32)], "4 bytes more"),
    ],
)
def test_writer_refuses_what_was_not_declared(
    tmp_path: Path, produced: object, message: str
) -> None:
    source = TensorSource("t", F32, (2, 3), lambda: produced)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=f"'t'.*{message}"):
        write_safetensors(tmp_path / "x", [source])


def test_writer_refuses_a_name_twice_and_unknown_dtypes(tmp_path: Path) -> None:
    source = TensorSource("t", F32, (1,), lambda: np.zeros(1, F32))
    with pytest.raises(ValueError, match="'t' stands twice"):
        write_safetensors(tmp_path / "x", [source, source])
    with pytest.raises(ValueError, match="complex64"):
        save_arrays(tmp_path / "x", {"c": np.zeros(1, np.complex64)})


def test_full_disk_is_a_machine_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No space left") as caught:
        save_arrays(Path("/dev/full"), {"t": np.zeros(1 << 20, F32)})
    assert caught.value.name == "E_WRITE"


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (np.float32, np.nan),
        (np.float32, -np.inf),
        (np.float16, np.inf),
        (ml_dtypes.bfloat16, np.nan),
        (ml_dtypes.bfloat16, -np.inf),
        (np.float64, np.nan),
    ],
)
@pytest.mark.parametrize("where", [0, 111, 4_999_999])
def test_non_finite_values_are_found_where_they_are(
    tmp_path: Path, dtype: type, bad: float, where: int
) -> None:
    array = np.full(5_000_000, np.float32(3.0e38) if dtype != np.float16 else 65504, dtype)
    save_arrays(tmp_path / "x", {"t": array})
    assert SafetensorsFile(tmp_path / "x").non_finite("t") is None
    array[where] = bad
    save_arrays(tmp_path / "y", {"t": array})
    assert SafetensorsFile(tmp_path / "y").non_finite("t") == where


def refused(path: Path, name: str, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert caught.value.name == name
    assert str(path) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert len(caught.value.render().splitlines()) in (2, 3)


def entry(dtype: object = "F32", shape: object = None, offsets: object = None) -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [2] if shape is None else shape,
        "data_offsets": [0, 8] if offsets is None else offsets,
    }


@pytest.mark.parametrize(
    ("header", "name", "part"),
    [
        ({"t": entry("F8_E4M3")}, "E_DTYPE", "F8_E4M3"),
        ({"t": entry(7)}, "E_DTYPE", "'t'"),
        ({"t": entry(shape=[3])}, "E_OFFSETS", "'t'"),
        ({"t": entry(shape=[-2])}, "E_HEADER", "'t'"),
        ({"t": entry(shape=[2.0])}, "E_HEADER", "'t'"),
        ({"t": entry(shape=[True, 2])}, "E_HEADER", "'t'"),
        ({"t": entry(shape="2")}, "E_HEADER", "'t'"),
        ({"t": entry(shape=[1] * 33 + [2])}, "E_HEADER", "'t'"),
        ({"t": entry(shape=[1 << 62, 1 << 62, 0, 2])}, "E_OFFSETS", "'t'"),
        ({"t": entry(shape=[1 << 70])}, "E_HEADER", "'t'"),
        ({"t": entry(offsets=[8, 0])}, "E_OFFSETS", "'t'"),
        ({"t": entry(offsets=[0])}, "E_OFFSETS", "'t'"),
        ({"t": entry(offsets=[-8, 0])}, "E_OFFSETS", "'t'"),
        ({"t": entry(offsets=[4, 12])}, "E_TRUNCATED", "'t'"),
        ({"t": {**entry(), "extra": 1}}, "E_HEADER", "'t'"),
        ({"t": {"dtype": "F32"}}, "E_HEADER", "'t'"),
        ({"t": []}, "E_HEADER", "'t'"),
        ({"t": entry(shape=[1], offsets=[0, 4])}, "E_OFFSETS", "4 bytes after"),
        ({"t": entry(shape=[1], offsets=[4, 8])}, "E_OFFSETS", "gap"),
        ({"a": entry(), "t": entry(shape=[1], offsets=[4, 8])}, "E_OFFSETS", "'t': overlaps"),
        ({"a": entry(), "t": entry()}, "E_OFFSETS", "'t': overlaps"),
        ({"__metadata__": {"a": 1}, "t": entry()}, "E_HEADER", "__metadata__"),
        ({"__metadata__": [], "t": entry()}, "E_HEADER", "__metadata__"),
        (b'{"t":{},"t":{}}', "E_HEADER", "'t' stands twice"),
        (b'{"t":{"dtype":"F32","dtype":"F32"}}', "E_HEADER", "'dtype' stands twice"),
        (b"[" * 100_000, "E_HEADER", "start with"),
        (b'{"t":' * 100_000, "E_HEADER", "nested"),
        (b'{"t":' + b"[" * 200 + b"]" * 200 + b"}", "E_HEADER", "nested deeper than 100"),
        (b'{"t":{"shape":[1e999]}}', "E_HEADER", "out of range"),
        (b'{"t":{"shape":[NaN]}}', "E_HEADER", "NaN"),
        (b'{"t":' + b"9" * 5000 + b"}", "E_HEADER", "an integer of too many digits"),
        (b'{"\xff":1}', "E_HEADER", "UTF-8"),
        (b"{", "E_HEADER", "JSON"),
        (b"", "E_HEADER", "start with"),
    ],
)
def test_bad_headers_are_refused(
    path: Path, header: dict[str, object] | bytes, name: str, part: str
) -> None:
    set_header(path, header, data=b"\0" * 8)
    refused(path, name, part)


def test_names_from_a_file_cannot_write_on_the_terminal(path: Path) -> None:
    set_header(path, {"\x1b[2J\ud800\n": entry("BAD")}, data=b"\0" * 8)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert "\x1b" not in str(caught.value)
    str(caught.value).encode("ascii")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 20, -1, -12])
def test_truncated_files_are_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "E_TRUNCATED", "truncated")


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(path, "E_LFS_POINTER", "git lfs pull")
    path.write_bytes(b"PK\x03\x04" + b"\0" * 60)
    refused(path, "E_PICKLE", "convert to safetensors")
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    refused(path, "E_HEADER_SIZE", "safetensors file")
    refused(tmp_path / "absent", "E_MISSING_FILE", "no such file")
    refused(tmp_path, "E_MISSING_FILE", "not a regular file")


def test_header_size_limit_holds_and_is_an_option(path: Path) -> None:
    length = 16 * (1 << 20) + 1
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(path, "E_HEADER_SIZE", "16777216")
    save_arrays(path, {"t": np.zeros(2, F32)})
    with pytest.raises(CheckpointError, match="limit is 10"):
        SafetensorsFile(path, max_header_bytes=10)


def test_random_damage_is_refused_or_read_as_the_reference_reads_it(path: Path) -> None:
    """500 damaged files: an error of ours, or exactly the tensors the reference library finds."""
    whole = path.read_bytes()
    rng = random.Random(5)
    num_refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(len(data))] = rng.choice([0, 0x22, 0x7B, rng.randrange(256)])
        path.write_bytes(data)
        try:
            file = SafetensorsFile(path)
        except CheckpointError:
            num_refused += 1
            continue
        theirs = safetensors.numpy.load(bytes(data))
        ours = {name: file.tensor(name).tobytes() for name in file.names()}
        assert ours == {name: array.tobytes() for name, array in theirs.items()}
    assert num_refused > 300


def test_header_of_sample_is_as_documented(path: Path) -> None:
    header = header_of(path)
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_blocks_are_those_of_huge_pages_whatever_the_pieces(tmp_path: Path) -> None:
    """What is written is what was given, and each write but the last begins and ends at 2 MiB."""
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(n) for n in (3, 2 << 20, 1, 5_000_000, (2 << 20) - 4, 0, 700)]
    sizes: list[int] = []

    class Recorder(io.BytesIO):
        def write(self, data: Any) -> int:
            sizes.append(len(data))
            return super().write(data)

    file = Recorder()
    writer = HugePageWriter(file)
    for piece in pieces:
        writer.write(piece)
    writer.flush()
    assert file.getvalue() == b"".join(pieces)
    assert set(sizes[:-1]) == {2 << 20} and 0 < sizes[-1] < 2 << 20
