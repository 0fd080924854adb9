"""`bundle.json`: what a bundle is and which files it has, parsed without trusting a byte of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from la_trt.config import ModelConfig
from la_trt.errors import BundleError, LookAgainError
from la_trt.files.strict_json import parse_json, show

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 1000
REBUILD = "rebuild with la-trt build --ckpt DIR --output DIR"
QUANTS = ("none", "int8", "int4", "fp8")

_KEYS = {
    "format_version",
    "la_trt_version",
    "config",
    "tags",
    "limits",
    "quant",
    "request",
    "files",
    "digest",
}
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLimits:
    """What the graphs were built for: tokens of context, pixels of one image."""

    max_model_len: int
    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        for name in ("max_model_len", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 1 << 48:
                raise ValueError(f"limits.{name}: expected a positive integer, got {show(value)}")
        if self.min_pixels > self.max_pixels:
            raise ValueError("limits.min_pixels is larger than limits.max_pixels")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One listed file: its path in the bundle with `/`, bytes, and sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `bundle.json`. `digest` names the whole bundle: it covers every field,
    the hashes of the files included.
    """

    la_trt_version: str
    config: ModelConfig
    tags: Mapping[str, int]
    limits: BundleLimits
    quant: str
    request: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    digest: str = ""

    def render(self) -> bytes:
        """The one byte sequence that stands for this manifest, its digest computed anew."""
        body = self._body()
        body["digest"] = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical(body)

    def _body(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "la_trt_version": self.la_trt_version,
            "config": self.config.to_dict(),
            "tags": dict(self.tags),
            "limits": {
                "max_model_len": self.limits.max_model_len,
                "min_pixels": self.limits.min_pixels,
                "max_pixels": self.limits.max_pixels,
            },
            "quant": self.quant,
            "request": dict(self.request),
            "files": [
                {"path": file.path, "size": file.size, "sha256": file.sha256}
                for file in sorted(self.files, key=lambda file: file.path)
            ],
        }


def check_file_name(name: object) -> str | None:
    """Why `name` cannot be a file of a bundle, or None when it can."""
    if not isinstance(name, str):
        return "not a string"
    parts = name.split("/")
    if len(parts) > 4 or not all(_PART.fullmatch(part) for part in parts):
        return "not a plain relative path of letters, digits, '.', '_' and '-'"
    if name == MANIFEST:
        return "the manifest cannot list itself"
    return None


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in `data`. Raises BundleError naming the field: E_MANIFEST or E_FORMAT_VERSION.

    Only the byte sequence that `Manifest.render` writes is accepted, so that no byte of the
    file can change unseen.
    """
    raw = parse_json(
        data,
        where=where,
        todo=REBUILD,
        error=BundleError,
        name="E_MANIFEST",
        max_bytes=MAX_MANIFEST_BYTES,
    )
    if not isinstance(raw, dict):
        _refuse(where, "expected a JSON object")
    version = raw.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise BundleError(
            f"{where}: format_version {show(version)}, this la-trt reads {FORMAT_VERSION}\n"
            f"{'install a newer la-trt, or ' if newer else ''}{REBUILD}",
            name="E_FORMAT_VERSION",
        )
    for key in sorted(_KEYS - set(raw)):
        _refuse(where, f"field {show(key)} is missing")
    for key in sorted(set(raw) - _KEYS):
        _refuse(where, f"unknown field {show(key)}")
    try:
        manifest = _from_dict(raw)
    except (ValueError, TypeError, LookAgainError) as problem:
        _refuse(where, " ".join(str(problem).split()))
    if manifest.render() != data:
        _refuse(where, "changed after it was written (digest or layout differs)")
    return manifest


def _refuse(where: str, what: str) -> NoReturn:
    raise BundleError(f"{where}: {what}\n{REBUILD}", name="E_MANIFEST")


def _canonical(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _from_dict(raw: Mapping[str, Any]) -> Manifest:
    for field in ("la_trt_version", "quant", "digest"):
        if not isinstance(raw[field], str):
            raise ValueError(f"{field}: expected a string, got {show(raw[field])}")
    for field in ("config", "tags", "limits", "request"):
        if not isinstance(raw[field], dict):
            raise ValueError(f"{field}: expected an object, got {show(raw[field])}")
    if raw["quant"] not in QUANTS:
        raise ValueError(f"quant: expected one of {QUANTS}, got {show(raw['quant'])}")
    config = ModelConfig.from_dict(raw["config"], where="config")
    if raw["config"] != json.loads(json.dumps(config.to_dict())):
        raise ValueError("config: fields that this la-trt does not know or writes differently")
    if set(raw["limits"]) != {"max_model_len", "min_pixels", "max_pixels"}:
        raise ValueError(f"limits: unexpected fields {show(sorted(raw['limits']))}")
    for tag, index in raw["tags"].items():
        if type(index) is not int or not 0 <= index < config.text.vocab_size:
            raise ValueError(f"tags: {show(tag)} has id {show(index)}, outside the vocabulary")
    return Manifest(
        la_trt_version=raw["la_trt_version"],
        config=config,
        tags=raw["tags"],
        limits=BundleLimits(**raw["limits"]),
        quant=raw["quant"],
        request=raw["request"],
        files=_files(raw["files"]),
        digest=raw["digest"],
    )


def _files(raw: Any) -> tuple[FileEntry, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_FILES:
        raise ValueError(f"files: expected a list of 1 to {MAX_FILES} entries")
    entries: dict[str, FileEntry] = {}
    for entry in raw:
        if not isinstance(entry, dict) or set(entry) != {"path", "size", "sha256"}:
            raise ValueError(f"files: expected path, size and sha256, got {show(entry)}")
        problem = check_file_name(entry["path"])
        if problem:
            raise ValueError(f"files: {show(entry['path'])} is {problem}")
        if type(entry["size"]) is not int or entry["size"] < 0:
            raise ValueError(f"files: {show(entry['path'])} has size {show(entry['size'])}")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            raise ValueError(f"files: {show(entry['path'])} has no sha256")
        if entry["path"].lower() in entries:
            raise ValueError(f"files: {show(entry['path'])} is listed twice")
        entries[entry["path"].lower()] = FileEntry(entry["path"], entry["size"], entry["sha256"])
    for path in list(entries):
        parents = ["/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 1)]
        if any(parent in entries for parent in parents):
            raise ValueError(f"files: {show(path)} lies inside another file")
    return tuple(entries.values())
