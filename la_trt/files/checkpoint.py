"""A Qwen2.5-VL model directory as released: opened strictly, its weights as memory-mapped views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from la_trt.config import ModelConfig
from la_trt.errors import CheckpointError
from la_trt.files.names import canonical_name, expected_tensors, is_ignored
from la_trt.files.safetensors import DOWNLOAD_AGAIN, UNQUANTISED, SafetensorsFile
from la_trt.files.strict_json import parse_json, show
from la_trt.files.tokenizer_check import check_tokenizer

__all__ = ["Checkpoint", "canonical_name", "expected_tensors", "open_checkpoint"]

WEIGHT_CODES = ("F32", "F16", "BF16")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
MAX_TEXT_BYTES = 64 << 20
# Tokenizers that are not `fast` are saved as vocab.json and merges.txt alone.
WRITE_TOKENIZER = (
    "write it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPARE_BYTES = 8 << 20
Progress = Callable[[int, int], None]


class Checkpoint:
    """An open model directory. Names are the released ones, whatever the files use.

    `tensor(name)` is a read-only numpy view of the memory map (BF16 as `ml_dtypes.bfloat16`);
    `release(name)` gives its pages back. With `finite="access"` the first `tensor(name)` call
    scans that tensor and raises CheckpointError (E_NON_FINITE) for a NaN or Inf.
    """

    def __init__(
        self, path: Path, config: ModelConfig, files: dict[str, tuple[SafetensorsFile, str]]
    ) -> None:
        self.path = path
        self.config = config
        self._files = files
        self._unscanned = set(files)

    def names(self) -> list[str]:
        """Canonical names in the order of `expected_tensors`."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        file, stored = self._files[name]
        return file.info(stored).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The stored dtype: float32, float16 or `ml_dtypes.bfloat16`."""
        file, stored = self._files[name]
        return file.info(stored).dtype

    def num_bytes(self) -> int:
        """Bytes of all weights as stored."""
        infos = (file.info(stored) for file, stored in self._files.values())
        return sum(info.stop - info.start for info in infos)

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the tensor. KeyError for a name that is not in `names()`."""
        file, stored = self._files[name]
        if name in self._unscanned:
            self.scan(name)
        return file.tensor(stored)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; views stay valid."""
        file, stored = self._files[name]
        file.release(stored)

    def scan(self, name: str) -> None:
        """Raises CheckpointError (E_NON_FINITE) when the tensor holds a NaN or Inf."""
        file, stored = self._files[name]
        where = file.non_finite(stored)
        if where is not None:
            at = [int(i) for i in np.unravel_index(where, file.info(stored).shape)]
            raise CheckpointError(
                f"{file.path}: tensor {show(stored)} has a NaN or Inf at {at}\n{DOWNLOAD_AGAIN}",
                name="E_NON_FINITE",
            )
        self._unscanned.discard(name)

    def scan_all(self, progress: Progress | None = None) -> None:
        """`scan` of every tensor not scanned so far; `progress(done, total)` counts bytes."""
        total, done = self.num_bytes(), 0
        for name, (file, stored) in self._files.items():
            if name in self._unscanned:
                self.scan(name)
            info = file.info(stored)
            done += info.stop - info.start
            if progress is not None:
                progress(done, total)

    def tokenizer_files(self) -> dict[str, Path]:
        """Name -> path of the tokenizer, template and processor files that are there."""
        found = {}
        for name in TOKENIZER_FILES:
            if (self.path / name).is_symlink() or (self.path / name).exists():
                found[name] = safe_file(self.path, name)
        return found


def open_checkpoint(
    path: str | Path,
    *,
    finite: Literal["open", "access", "never"] = "open",
    require_tokenizer: bool = True,
    max_header_bytes: int | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """The checkpoint in a Hugging Face directory of Qwen2.5-VL, every tensor checked.

    `finite` says when weights are searched for NaN and Inf. Raises CheckpointError naming the
    file, the tensor and what to do; nothing missing is ever made up.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: not a directory\ngive the directory that holds config.json",
            name="E_MISSING_FILE",
        )
    if (path / "bundle.json").exists() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path}: a bundle, not a checkpoint\nrun it with --engine {path}",
            name="E_MISSING_FILE",
        )
    raw = _read_json(path, "config.json", "E_CONFIG", DOWNLOAD_AGAIN)
    config = ModelConfig.from_dict(raw, where=str(path / "config.json"))
    if require_tokenizer:
        tokenizer = safe_file(path, "tokenizer.json")
        check_tokenizer(tokenizer, _read_text(tokenizer), config)
    stored = _open_files(path, max_header_bytes)
    todo = (
        UNQUANTISED if raw.get("quantization_config") else f"{DOWNLOAD_AGAIN}, or check config.json"
    )
    checkpoint = Checkpoint(path, config, _match(path, config, stored, todo))
    if finite == "open":
        checkpoint.scan_all(progress)
    elif finite == "never":
        checkpoint._unscanned.clear()
    return checkpoint


def safe_file(directory: Path, name: str) -> Path:
    """`directory / name`, a regular file inside it (or inside a hub cache's own `blobs`).

    Raises CheckpointError: E_MISSING_FILE, or E_LINK for a link that leads elsewhere.
    """
    path = directory / name
    if path.is_symlink():
        target = path.resolve()
        real = directory.resolve()
        in_hub_cache = real.parent.name == "snapshots" and target.parent == (
            real.parent.parent / "blobs"
        )
        if target.parent != real and not in_hub_cache:
            raise CheckpointError(
                f"{path}: a symbolic link that leads out of the directory\n"
                "copy the file into the directory",
                name="E_LINK",
            )
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        unwritten = name == "tokenizer.json" and (directory / "vocab.json").is_file()
        todo = WRITE_TOKENIZER if unwritten else DOWNLOAD_AGAIN
        raise CheckpointError(f"{path}: {what}\n{todo}", name="E_MISSING_FILE")
    return path


def _read_text(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"{path}: {size} bytes, the limit is {MAX_TEXT_BYTES}\n{DOWNLOAD_AGAIN}",
            name="E_JSON",
        )
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise CheckpointError(
            f"{path}: cannot be read ({problem.strerror})\ncheck the file's permissions",
            name="E_UNREADABLE_FILE",
        ) from None
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a git-LFS pointer, not the file itself\n"
            "run `git lfs pull` in that directory, or download the file again",
            name="E_LFS_POINTER",
        )
    return data


def _read_json(directory: Path, name: str, error_name: str, todo: str) -> dict[str, Any]:
    path = safe_file(directory, name)
    raw = parse_json(_read_text(path), where=str(path), todo=todo, name=error_name)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object\n{todo}", name=error_name)
    return raw


def _open_files(path: Path, max_header_bytes: int | None) -> list[SafetensorsFile]:
    """The one file, or every shard of the index, each holding exactly what the index says."""
    single, index = path / SINGLE, path / INDEX
    has_single, has_index = _is_there(single), _is_there(index)
    if has_single and has_index:
        raise CheckpointError(
            f"{index}: stands beside {SINGLE}; it is not clear which one counts\n"
            "remove the one that is out of date",
            name="E_INDEX",
        )
    if has_single:
        return [SafetensorsFile(safe_file(path, SINGLE), max_header_bytes=max_header_bytes)]
    if has_index:
        return list(_open_shards(path, max_header_bytes))
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{path / pickles[0]}: pickled weights are refused, they could run code\n"
            "convert to safetensors",
            name="E_PICKLE",
        )
    raise CheckpointError(
        f"{single}: no such file, and no {INDEX}\n{DOWNLOAD_AGAIN}", name="E_MISSING_FILE"
    )


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _open_shards(path: Path, max_header_bytes: int | None) -> Iterator[SafetensorsFile]:
    index = path / INDEX
    weight_map = _read_json(path, INDEX, "E_INDEX", DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map\n{DOWNLOAD_AGAIN}", name="E_INDEX")
    shards: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        _check_shard_name(index, tensor, name)
        shards.setdefault(name, []).append(tensor)
    for name, tensors in sorted(shards.items()):
        file = SafetensorsFile(safe_file(path, name), max_header_bytes=max_header_bytes)
        for tensor in tensors:
            if tensor not in file:
                raise CheckpointError(
                    f"{file.path}: tensor {show(tensor)} is missing, {INDEX} places it there\n"
                    f"{DOWNLOAD_AGAIN}",
                    name="E_MISSING_TENSOR",
                )
        for tensor in set(file.names()) - set(tensors):
            raise CheckpointError(
                f"{file.path}: tensor {show(tensor)} is not listed there in {INDEX}\n"
                f"{DOWNLOAD_AGAIN}",
                name="E_EXTRA_TENSOR",
            )
        yield file


def _check_shard_name(index: Path, tensor: str, name: object) -> None:
    where = f"{index}: tensor {show(tensor)} is in {show(name)}"
    if isinstance(name, str) and name.endswith(_PICKLES):
        raise CheckpointError(f"{where}, a pickle\nconvert to safetensors", name="E_PICKLE")
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise CheckpointError(
            f"{where}, not a plain name of a .safetensors file\n{DOWNLOAD_AGAIN}",
            name="E_ESCAPING_NAME",
        )


def _match(
    path: Path, config: ModelConfig, files: list[SafetensorsFile], todo: str
) -> dict[str, tuple[SafetensorsFile, str]]:
    """Canonical name -> (file, stored name), exactly the expected tensors with their shapes.

    `todo` is what to do about a tensor that is missing.
    """
    found: dict[str, tuple[SafetensorsFile, str]] = {}
    for file in files:
        for stored in file.names():
            name = canonical_name(stored)
            if name in found:
                raise CheckpointError(
                    f"{file.path}: tensor {show(stored)} is there twice, also as "
                    f"{show(found[name][1])}\nremove one of the two",
                    name="E_DUPLICATE_TENSOR",
                )
            if not is_ignored(name):
                found[name] = (file, stored)
    expected = expected_tensors(config)
    if config.text.tie_word_embeddings and _HEAD in found:
        _check_tied(found)
        del found[_HEAD]
    for name in expected:
        if name not in found:
            count = sum(other not in found for other in expected)
            raise CheckpointError(
                f"{files[0].path if len(files) == 1 else path}: tensor {show(name)} is missing "
                f"({count} missing in all)\n{todo}",
                name="E_MISSING_TENSOR",
            )
    for name, (file, stored) in found.items():
        if name not in expected:
            raise CheckpointError(
                f"{file.path}: tensor {show(stored)} does not belong to this model\n"
                "remove it, or check config.json",
                name="E_EXTRA_TENSOR",
            )
        _check_tensor(file, stored, expected[name])
    return {name: found[name] for name in expected}


def _check_tensor(file: SafetensorsFile, stored: str, expected: tuple[int, ...]) -> None:
    info = file.info(stored)
    where = f"{file.path}: tensor {show(stored)}"
    if info.code not in WEIGHT_CODES:
        raise CheckpointError(
            f"{where}: dtype {info.code}, expected {', '.join(WEIGHT_CODES)}\n{UNQUANTISED}",
            name="E_DTYPE",
        )
    if info.shape == expected:
        return
    got = f"{where}: shape {show(list(info.shape))}, expected {list(expected)}"
    if info.shape == expected[::-1]:
        raise CheckpointError(f"{got}\ntranspose the tensor", name="E_TRANSPOSED_TENSOR")
    raise CheckpointError(
        f"{got}\ntake config.json and weights from the same checkpoint", name="E_SHAPE"
    )


def _check_tied(found: dict[str, tuple[SafetensorsFile, str]]) -> None:
    """Refuse a `lm_head.weight` that differs from the embedding the config ties it to."""
    if _EMBEDDING not in found:
        return
    file, stored = found[_HEAD]
    other_file, other_stored = found[_EMBEDDING]
    head, embedding = file.tensor(stored), other_file.tensor(other_stored)
    same = head.dtype == embedding.dtype and head.shape == embedding.shape
    if same:
        left, right = head.reshape(-1).view(np.uint8), embedding.reshape(-1).view(np.uint8)
        pieces = range(0, left.size, _COMPARE_BYTES)
        same = all(
            np.array_equal(left[i : i + _COMPARE_BYTES], right[i : i + _COMPARE_BYTES])
            for i in pieces
        )
        file.release(stored)
        other_file.release(other_stored)
    if not same:
        raise CheckpointError(
            f"{file.path}: tensor {show(stored)} differs from the embedding, but config.json has "
            "tie_word_embeddings true\nset it to false if the head is meant to be separate",
            name="E_TIED_HEAD",
        )
