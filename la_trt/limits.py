"""The published limits with their defaults; each is a flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields

from la_trt.errors import UsageError

MIB = 1 << 20
MAX_THREADS = 1024  # of an engine
DEFAULT_MAX_TOKENS = 512  # of an answer, where nobody says
MAX_SPECULATE = 16  # tokens guessed ahead in a step
KV_DTYPES = ("float32", "bfloat16", "float16", "int8")  # of the native engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what one request may bring. Counts and bytes; all must be positive."""

    max_image_bytes: int = 20 * MIB  # encoded size of one image
    max_image_pixels: int = 50_000_000  # decoded size of one image
    max_request_pixels: int = 100_000_000  # decoded size of all images of a request
    max_images: int = 8
    max_aspect_ratio: int = 200
    max_stop_strings: int = 4
    max_stop_length: int = 256  # characters of one stop string
    max_reflections: int = 8
    max_safetensors_header_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError(
                    f"limit {field.name}: expected a non-negative integer, got {value!r}"
                )
