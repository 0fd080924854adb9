"""An image file or picture as RGB pixels, with every limit checked before decoding."""

from __future__ import annotations

import io
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from la_trt.errors import InputError
from la_trt.limits import Limits
from la_trt.processor.features import ImageConfig, preprocess, smart_resize
from la_trt.processor.headers import read_header

__all__ = [
    "ImageConfig",
    "ImageSource",
    "check_size",
    "load_image",
    "preprocess",
    "smart_resize",
]

ImageSource = bytes | bytearray | memoryview | Path | Image.Image

# EXIF orientation (tag 0x0112) -> what undoes it.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_HAS_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Encoders write a few thousand; millions of empty ones would keep us busy for seconds.
MAX_PNG_CHUNKS = 100_000
# Warning filters are process-wide, so only one thread at a time may change them.
_FILTERS = threading.Lock()


def load_image(source: ImageSource, limits: Limits | None = None) -> Image.Image:
    """The picture as an upright 8-bit RGB image.

    `source`: encoded bytes or a path (JPEG, PNG, WebP, GIF: first frame), or a PIL image. EXIF
    orientation is applied, 16-bit grey is scaled to 8 bits (v >> 8, as colour PNGs are),
    transparency is composited on white, every other mode converted. Colour profiles are ignored.
    Raises InputError E_IMAGE_*: EMPTY, FORMAT, DECODE, FILE, TOO_LARGE, ASPECT, MODE. Sizes are
    checked from the header, before a decoder runs.
    """
    limits = limits or Limits()
    if isinstance(source, Image.Image):
        check_size(source.width, source.height, limits)
        return _to_upright_rgb(source)
    if isinstance(source, Path):
        try:
            return _decode(_read_file(source, limits), limits)
        except InputError as error:
            what = str(error).removeprefix("image: ")
            raise InputError(f"image {source}: {what}", name=error.name) from None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), limits)
    raise InputError(
        f"image: expected bytes, a Path or a PIL image, got {type(source).__name__}",
        name="E_IMAGE_TYPE",
    )


def _decode(data: bytes, limits: Limits) -> Image.Image:
    if len(data) > limits.max_image_bytes:
        raise _too_many_bytes(len(data), limits)
    header = read_header(data)
    check_size(header.width, header.height, limits)
    if header.format == "PNG":
        _check_png(memoryview(data))
    try:
        image = _open(data, header.format)
        check_size(image.width, image.height, limits)
        return _to_upright_rgb(image)
    except InputError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise InputError(
            f"image: too large to decode ({header.format}, {len(data)} bytes)\nscale it down",
            name="E_IMAGE_TOO_LARGE",
        ) from None
    except Exception as error:  # decoders raise whatever the damage leads to
        raise _damaged(header.format, error) from None


def check_size(width: int, height: int, limits: Limits) -> None:
    """Nothing; raises InputError E_IMAGE_TOO_LARGE or E_IMAGE_ASPECT. Sizes in pixels."""
    if width < 1 or height < 1:
        raise InputError(
            f"image: {width} x {height} pixels, expected at least 1 x 1", name="E_IMAGE_DECODE"
        )
    if width * height > limits.max_image_pixels:
        raise InputError(
            f"image: {width} x {height} = {width * height} pixels, at most "
            f"{limits.max_image_pixels} are allowed\nscale it down",
            name="E_IMAGE_TOO_LARGE",
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise InputError(
            f"image: {width} x {height} pixels, one side more than {limits.max_aspect_ratio} "
            "times the other\ncrop it",
            name="E_IMAGE_ASPECT",
        )


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "no such file"
            raise InputError(f"image: {what}", name="E_IMAGE_FILE")
        with path.open("rb") as file:
            data = file.read(limits.max_image_bytes + 1)
            if len(data) > limits.max_image_bytes:
                raise _too_many_bytes(path.stat().st_size, limits)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"image: cannot read it ({reason})", name="E_IMAGE_FILE") from None
    return data


def _too_many_bytes(size: int, limits: Limits) -> InputError:
    return InputError(
        f"image: {size} bytes, at most {limits.max_image_bytes} are allowed\n"
        "scale it down or compress it",
        name="E_IMAGE_TOO_LARGE",
    )


def _damaged(name: str, error: BaseException) -> InputError:
    detail = " ".join(str(error).split())[:120]
    return _undecodable(name, f"{type(error).__name__}: {detail}")


def _undecodable(name: str, why: str) -> InputError:
    return InputError(
        f"image: cannot decode this {name} ({why})\nit is truncated or damaged; save it again",
        name="E_IMAGE_DECODE",
    )


def _check_png(data: memoryview) -> None:
    """Nothing; raises InputError where a chunk's checksum differs, which decoders pass over."""
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        if at == len(data):
            return  # without its last chunk: the pixels are there, or the decoder misses them
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise _undecodable("PNG", f"the chunk at byte {at} ends too early")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _undecodable("PNG", f"the checksum of the chunk at byte {at} differs")
        if bytes(data[at + 4 : at + 8]) == b"IEND":
            return
        at = end + 4
    raise InputError(
        f"image: more than {MAX_PNG_CHUNKS} PNG chunks\nsave it again with an encoder's usual "
        "settings",
        name="E_IMAGE_DECODE",
    )


def _open(data: bytes, name: str) -> Image.Image:
    """The image of `data` with its header parsed; Pillow's warnings about it are not news."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=(name,))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; 1 when there is none or the block is damaged."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(_ORIENTATION_TAG, 1)
        except Exception:  # a damaged EXIF block does not make the pixels wrong
            return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise _damaged(image.format or image.mode, error) from None
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in _SIXTEEN_BIT:
        return _sixteen_bit_to_rgb(image)
    if mode in _HAS_ALPHA or (mode in _PLAIN and image.info.get("transparency") is not None):
        if mode == "La":
            image = image.convert("LA")
        with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    if mode in _PLAIN:
        return image.copy() if mode == "RGB" else image.convert("RGB")
    raise InputError(
        f"image: mode {mode!r} has no fixed range of values\nconvert it to 8-bit RGB first",
        name="E_IMAGE_MODE",
    )


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint16)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
