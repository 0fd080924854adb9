"""Images of every mode become the right RGB; damaged, huge and foreign ones a clean InputError."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from la_trt.errors import InputError
from la_trt.limits import Limits
from la_trt.processor import headers
from la_trt.processor import image as image_module
from la_trt.processor.image import load_image


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    """Gradients with noise, uint8, always the same for a shape."""
    noise = np.random.default_rng(7).integers(0, 60, (height, width, channels))
    rows, cols, planes = np.mgrid[0:height, 0:width, 0:channels]
    return ((rows * 2 + cols + planes * 40) % 196 + noise).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 40, width: int = 56) -> Image.Image:
    return Image.fromarray(pixels(height, width))


JPEG = encode(photo(), "JPEG")
PROGRESSIVE = encode(photo(), "JPEG", progressive=True)
PNG = encode(photo(), "PNG")
GIF = encode(photo().quantize(64), "GIF")
WEBP_LOSSY = encode(photo(), "WEBP")
WEBP_LOSSLESS = encode(photo(), "WEBP", lossless=True)
WEBP_EXTENDED = encode(photo().convert("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0" + b"x" * 9)
GOOD = {
    "jpeg": JPEG,
    "progressive": PROGRESSIVE,
    "png": PNG,
    "gif": GIF,
    "webp lossy": WEBP_LOSSY,
    "webp lossless": WEBP_LOSSLESS,
    "webp extended": WEBP_EXTENDED,
}


def same(image: Image.Image, expected: np.ndarray[Any, Any], tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    found = np.asarray(image).astype(int)
    assert found.shape == expected.shape
    difference = np.abs(found - expected.astype(int))
    assert difference.max() <= tolerance, np.argwhere(difference > tolerance)[0]


@pytest.mark.parametrize("name", GOOD)
def test_header_gives_format_and_size(name: str) -> None:
    header = headers.read_header(GOOD[name])
    assert (header.width, header.height) == (56, 40)
    assert header.format.lower() in (name.split()[0], "jpeg")
    assert load_image(GOOD[name]).size == (56, 40)


@pytest.mark.parametrize("size", [(1, 1), (1, 19), (111, 19), (200, 1), (1, 200)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_ugly_sizes_in_every_format(kind: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(pixels(size[1], size[0]))
    data = encode(image.quantize() if kind == "GIF" else image, kind)
    assert headers.read_header(data).width == size[0]
    assert load_image(data).size == size


def test_sources_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(PNG)
    expected = np.asarray(photo_of(PNG))
    for source in (PNG, bytearray(PNG), memoryview(PNG), path, photo_of(PNG)):
        same(load_image(source), expected)


def photo_of(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_result_is_a_copy() -> None:
    original = photo()
    load_image(original).putpixel((0, 0), (1, 2, 3))
    assert original.getpixel((0, 0)) == photo_pixel(original)


def photo_pixel(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(image)[0, 0])


def test_grey_is_repeated() -> None:
    grey = pixels(19, 111, 1)[..., 0]
    for kind in ("PNG", "WEBP"):
        data = encode(Image.fromarray(grey), kind, **({"lossless": True} if kind == "WEBP" else {}))
        same(load_image(data), np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    bits = pixels(19, 111, 1)[..., 0] > 100
    data = encode(Image.fromarray(bits), "PNG")
    assert photo_of(data).mode == "1"
    same(load_image(data), np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2))


def test_palette() -> None:
    image = photo().quantize(16)
    expected = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    same(load_image(encode(image, "PNG")), expected)
    same(load_image(encode(image, "GIF")), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    channels = len(mode)
    values = pixels(19, 111, channels)
    values[0, 0, -1], values[0, 1, -1] = 0, 255
    data = encode(Image.fromarray(values, mode=None), "PNG")
    assert photo_of(data).mode == mode
    alpha = values[..., -1:].astype(float) / 255
    colour = values[..., :-1] if mode == "RGBA" else np.repeat(values[..., :1], 3, axis=2)
    expected = np.rint(colour * alpha + 255 * (1 - alpha))
    loaded = load_image(data)
    same(loaded, expected, tolerance=1)
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 0)) == tuple(int(v) for v in colour[0, 1])


def test_transparent_colour_of_rgb_grey_and_palette() -> None:
    rgb = pixels(20, 20)
    rgb[3, 4] = (9, 8, 7)
    loaded = load_image(encode(Image.fromarray(rgb), "PNG", transparency=(9, 8, 7)))
    assert loaded.getpixel((4, 3)) == (255, 255, 255)
    assert loaded.getpixel((5, 3)) == photo_pixel(Image.fromarray(rgb[3:, 5:]))
    grey = np.full((6, 6), 40, np.uint8)
    grey[1, 2] = 99
    loaded = load_image(encode(Image.fromarray(grey), "PNG", transparency=99))
    assert loaded.getpixel((2, 1)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) == (40, 40, 40)
    indexed = Image.fromarray(rgb).quantize(8)
    index = int(np.asarray(indexed)[0, 0])
    for kind in ("PNG", "GIF"):
        loaded = load_image(encode(indexed, kind, transparency=index))
        where = np.asarray(indexed) == index
        assert (np.asarray(loaded)[where] == 255).all()


def test_palette_with_alpha_for_each_entry() -> None:
    indexed = photo().quantize(8)
    alphas = bytes([0, 255, 128, 0, 255, 255, 1, 254])
    loaded = np.asarray(load_image(encode(indexed, "PNG", transparency=alphas)))
    entries = np.asarray(indexed)
    colours = np.array(indexed.getpalette()[:24]).reshape(8, 3)
    alpha = np.array(list(alphas))[:, None] / 255
    expected = np.rint(colours * alpha + 255 * (1 - alpha))[entries]
    assert np.abs(loaded - expected).max() <= 1


def test_sixteen_bit_grey_is_scaled() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = encode(Image.fromarray(values), "PNG")
    assert photo_of(data).mode == "I;16"
    same(load_image(data), np.repeat((values >> 8)[..., None], 3, axis=2))
    same(load_image(Image.fromarray(values)), np.repeat((values >> 8)[..., None], 3, axis=2))


def sixteen_bit_png(colour_type: int, channels: int, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG of 16 x 16 with values over the whole range, most significant byte first."""
    values = (np.arange(256 * channels) * 65535 // (256 * channels - 1)).astype(">u2")
    rows = values.reshape(16, 16 * channels)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    ihdr = struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0)
    return png(ihdr, extra + chunk(b"IDAT", zlib.compress(raw)))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(ihdr: bytes, chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunks + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_scaled_alike() -> None:
    values = (np.arange(256 * 3) * 65535 // (256 * 3 - 1)).reshape(16, 16, 3)
    same(load_image(sixteen_bit_png(2, 3)), values >> 8)
    rgba = (np.arange(256 * 4) * 65535 // (256 * 4 - 1)).reshape(16, 16, 4) >> 8
    alpha = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    same(load_image(sixteen_bit_png(6, 4)), expected, tolerance=1)


def test_sixteen_bit_transparent_grey_is_white() -> None:
    values = (np.arange(256) * 65535 // 255).reshape(16, 16)
    loaded = load_image(sixteen_bit_png(0, 1, struct.pack(">H", int(values[3, 3]))))
    assert loaded.getpixel((3, 3)) == (255, 255, 255)
    assert loaded.getpixel((4, 3)) == (int(values[3, 4]) >> 8,) * 3


def test_cmyk_jpeg() -> None:
    cmyk = photo().convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    assert photo_of(data).mode == "CMYK"
    same(load_image(data), np.asarray(photo_of(data).convert("RGB")))
    same(load_image(cmyk), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, exif=exif, **options)
    opened = photo_of(data)
    upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert upright.shape[:2] == ((40, 56) if orientation < 5 else (56, 40))
    same(load_image(data), upright)
    same(load_image(opened), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk" * 99])
def test_damaged_exif_does_not_matter(exif: bytes) -> None:
    same(load_image(encode(photo(), "PNG", exif=exif)), np.asarray(photo()))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        opened = Image.open(io.BytesIO(data))
        assert opened.n_frames == 3
        assert load_image(data).getpixel((5, 5)) == (255, 0, 0)
        opened.seek(0)
        assert load_image(opened).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "La", "PA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_a_picture(mode: str) -> None:
    source = photo().convert("L") if mode in ("LA", "La", "PA") else photo()
    via = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode)
    image = (source.convert(via) if via else source).convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    assert loaded.size == (56, 40)
    if mode not in ("1", "P"):
        expected = image if mode == "L" else source
        same(loaded, np.asarray(expected.convert("RGB")), tolerance=12)


def jpeg_with_scans(count: int) -> bytes:
    end = PROGRESSIVE.rindex(b"\xff\xda")
    scan = PROGRESSIVE[end:-2]
    return PROGRESSIVE[:-2] + scan * count + b"\xff\xd9"


def gif_with_frame(width: int, height: int) -> bytes:
    """A GIF of 1 x 1 whose first frame claims another size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return screen + frame + b"\x02\x02D\x01\0;"


def png_claiming(width: int, height: int) -> bytes:
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), chunk(b"IDAT", b""))


def webp_extended_claiming(width: int, height: int) -> bytes:
    body = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    rest = b"VP8X" + struct.pack("<I", 10) + body + WEBP_LOSSLESS[12:]
    return b"RIFF" + struct.pack("<I", len(rest) + 4) + b"WEBP" + rest


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


SOF = JPEG.index(b"\xff\xc0")
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
BAD: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "EMPTY"),
    "one byte": (b"\xff", "FORMAT"),
    "zeros": (b"\0" * 1000, "FORMAT"),
    "text": (b"hello, I am a picture", "FORMAT"),
    "svg": (SVG, "FORMAT"),
    "svg with a declaration": (b"\xef\xbb\xbf <?xml version='1.0'?>" + SVG, "FORMAT"),
    "html": (b"<!DOCTYPE html><html></html>", "FORMAT"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "FORMAT"),
    "tiff": (encode(photo(), "TIFF"), "FORMAT"),
    "big-endian tiff": (b"MM\0*" + b"\0" * 100, "FORMAT"),
    "bmp": (encode(photo(), "BMP"), "FORMAT"),
    "ico": (encode(photo(), "ICO"), "FORMAT"),
    "ppm": (encode(photo(), "PPM"), "FORMAT"),
    "eps": (encode(photo(), "EPS"), "FORMAT"),
    "pdf": (b"%PDF-1.7\n", "FORMAT"),
    "tga": (encode(photo(), "TGA"), "FORMAT"),
    "avif": (b"\0\0\0\x20ftypavif" + b"\0" * 100, "FORMAT"),
    "heic": (b"\0\0\0\x20ftypheic" + b"\0" * 100, "FORMAT"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 99, "FORMAT"),
    "jpeg xl": (b"\xff\x0a" + b"\0" * 99, "FORMAT"),
    "zip": (b"PK\3\4" + b"\0" * 99, "FORMAT"),
    "wave": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 99, "FORMAT"),
    "pickle": (b"\x80\x04\x95\0\0\0\0\0\0\0\0.", "FORMAT"),
    "png magic damaged": (patched(PNG, 1, b"X"), "FORMAT"),
    "gif magic damaged": (patched(GIF, 4, b"8"), "FORMAT"),
    "png magic only": (PNG[:8], "DECODE"),
    "png without its header chunk": (patched(PNG, 12, b"IDAT"), "DECODE"),
    "png zero width": (png_claiming(0, 10), "DECODE"),
    "png zero height": (png_claiming(10, 0), "DECODE"),
    "png bad checksum": (patched(PNG, 29, b"\0\0\0\0"), "DECODE"),
    "png bad bit depth": (
        png(struct.pack(">IIBBBBB", 9, 9, 7, 2, 0, 0, 0), chunk(b"IDAT", b"x")),
        "DECODE",
    ),
    "png bad colour type": (
        png(struct.pack(">IIBBBBB", 9, 9, 8, 5, 0, 0, 0), chunk(b"IDAT", b"x")),
        "DECODE",
    ),
    "png no data": (png_claiming(20, 20), "DECODE"),
    "png data not compressed": (
        png(struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0), chunk(b"IDAT", b"not zlib")),
        "DECODE",
    ),
    "png data too short": (
        png(struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0), chunk(b"IDAT", zlib.compress(b"abc"))),
        "DECODE",
    ),
    "png chunk name wild": (patched(PNG, 37, b"\xff\xff\xff\xff"), "DECODE"),
    "png bomb": (png_claiming(100_000, 100_000), "TOO_LARGE"),
    "png widest": (png_claiming(2**31 - 1, 2**31 - 1), "TOO_LARGE"),
    "png 8 GB of zeros": (
        png(
            struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0),
            chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000)),
        ),
        "TOO_LARGE",
    ),
    "png text bomb": (
        patched(PNG, 0, PNG[:33])[:33]
        + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 200_000_000, 9))
        + PNG[33:],
        "DECODE",
    ),
    "png just above the pixels": (png_claiming(10_000, 5_001), "TOO_LARGE"),
    "png too wide": (png_claiming(20_001, 100), "ASPECT"),
    "png too tall": (png_claiming(1, 201), "ASPECT"),
    "jpeg magic only": (b"\xff\xd8\xff", "DECODE"),
    "jpeg without a frame": (JPEG[:SOF] + b"\xff\xd9", "DECODE"),
    "jpeg frame cut": (JPEG[: SOF + 6], "DECODE"),
    "jpeg without a scan": (JPEG[: JPEG.index(b"\xff\xda")], "DECODE"),
    "jpeg without its data": (JPEG[: JPEG.index(b"\xff\xda") + 20], "DECODE"),
    "jpeg zero height": (patched(JPEG, SOF + 5, b"\0\0"), "DECODE"),
    "jpeg zero width": (patched(JPEG, SOF + 7, b"\0\0"), "DECODE"),
    "jpeg bomb": (patched(JPEG, SOF + 5, b"\xff\xff\xff\xff"), "TOO_LARGE"),
    "jpeg too wide": (patched(JPEG, SOF + 5, b"\0\1\x03\xe8"), "ASPECT"),
    "jpeg twelve bits": (patched(JPEG, SOF + 4, b"\x0c"), "DECODE"),
    "jpeg nine components": (patched(JPEG, SOF + 9, b"\x09"), "DECODE"),
    "jpeg endless scans": (jpeg_with_scans(5000), "DECODE"),
    "jpeg lossless frame": (patched(JPEG, SOF + 1, b"\xc3"), "DECODE"),
    "gif magic only": (GIF[:6], "DECODE"),
    "gif zero size": (patched(GIF, 6, b"\0\0\0\0"), "DECODE"),
    "gif without frames": (GIF[:13] + b";", "DECODE"),
    "gif bomb": (patched(GIF, 6, b"\xff\xff\xff\xff"), "TOO_LARGE"),
    "gif frame bomb": (gif_with_frame(65535, 65535), "TOO_LARGE"),
    "gif frame beyond the limit": (gif_with_frame(10_000, 5_001), "TOO_LARGE"),
    "gif frame too wide": (gif_with_frame(1001, 2), "ASPECT"),
    "webp magic only": (WEBP_LOSSY[:12], "DECODE"),
    "webp unknown chunk": (patched(WEBP_LOSSY, 12, b"VP9 "), "DECODE"),
    "webp lossy frame damaged": (patched(WEBP_LOSSY, 23, b"\0\0\0"), "DECODE"),
    "webp lossy zero size": (patched(WEBP_LOSSY, 26, b"\0\0\0\0"), "DECODE"),
    "webp lossless signature": (patched(WEBP_LOSSLESS, 20, b"\0"), "DECODE"),
    "webp lossy bomb": (patched(WEBP_LOSSY, 26, b"\xff\x3f\xff\x3f"), "TOO_LARGE"),
    "webp lossless bomb": (patched(WEBP_LOSSLESS, 21, b"\xff\xff\xff\x0f"), "TOO_LARGE"),
    "webp canvas bomb": (webp_extended_claiming(1 << 24, 1 << 24), "TOO_LARGE"),
    "webp canvas too wide": (webp_extended_claiming(16_000, 40), "ASPECT"),
    "webp canvas and image differ": (webp_extended_claiming(57, 40), "DECODE"),
}
for _name, _data in GOOD.items():
    for _frac in (0.3, 0.6, 0.85):
        BAD[f"{_name} cut at {_frac}"] = (_data[: int(len(_data) * _frac)], "DECODE")


def test_there_are_enough_bad_images() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_an_input_error(name: str) -> None:
    data, kind = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load_image(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.name == f"E_IMAGE_{kind}", str(caught.value)
    assert len(caught.value.render().splitlines()) <= 3
    assert caught.value.exit_code == 3
    assert peak < 100 << 20


def test_every_flipped_byte_of_a_png_is_seen() -> None:
    """The pixels' own checksums, which Pillow does not look at; animated ones as well."""
    frames = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
    animated = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"fdAT" in animated
    for data in (PNG, animated):
        assert load_image(data).size == (56, 40)
        for at in (*range(8, len(data), 97), data.index(b"IDAT") + 40, len(data) - 30):
            with pytest.raises(InputError) as caught:
                load_image(patched(data, at, bytes([data[at] ^ 1])))
            assert caught.value.name.startswith("E_IMAGE_"), at


def test_a_png_of_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = chunk(b"tEXt", b"k\0v")
    data = PNG[:33] + extra * 50 + PNG[33:]
    assert load_image(data).size == (56, 40)
    monkeypatch.setattr(image_module, "MAX_PNG_CHUNKS", 50)
    with pytest.raises(InputError, match="more than 50 PNG chunks"):
        load_image(data)


@pytest.mark.parametrize(
    ("limits", "source", "kind"),
    [
        ({"max_image_bytes": len(PNG) - 1}, PNG, "TOO_LARGE"),
        ({"max_image_pixels": 40 * 56 - 1}, PNG, "TOO_LARGE"),
        ({"max_image_pixels": 40 * 56 - 1}, photo(), "TOO_LARGE"),
        ({"max_aspect_ratio": 1}, PNG, "ASPECT"),
        ({"max_aspect_ratio": 1}, photo(), "ASPECT"),
    ],
)
def test_each_limit_and_its_edge(limits: dict[str, int], source: Any, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        load_image(source, Limits(**limits))
    assert caught.value.name == f"E_IMAGE_{kind}"
    eased = {name: value + 1 for name, value in limits.items()}
    assert load_image(source, Limits(**eased)).size == (56, 40)


def test_limits_hold_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a decoder ran")

    monkeypatch.setattr(Image, "open", never)
    for name, (data, kind) in BAD.items():
        if kind in ("TOO_LARGE", "ASPECT") and "frame" not in name:
            with pytest.raises(InputError):
                load_image(data)


def test_bad_paths(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    large = tmp_path / "large.png"
    large.write_bytes(PNG + b"\0" * 5000)
    cases: list[tuple[Path, str]] = [
        (tmp_path / "missing.png", "FILE"),
        (tmp_path, "FILE"),
        (fifo, "FILE"),
        (tmp_path / ("x" * 5000), "FILE"),
        (tmp_path / "nul\0byte", "FILE"),
        (Path("/dev/zero"), "FILE"),
        (large, "TOO_LARGE"),
    ]
    for path, kind in cases:
        with pytest.raises(InputError) as caught:
            load_image(path, Limits(max_image_bytes=len(PNG) + 4000))
        assert caught.value.name == f"E_IMAGE_{kind}", path


@pytest.mark.parametrize("source", [None, 3, "picture.png", [1], np.zeros((3, 3, 3), np.uint8)])
def test_wrong_type(source: Any) -> None:
    with pytest.raises(InputError) as caught:
        load_image(source)
    assert caught.value.name == "E_IMAGE_TYPE"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_picture_without_a_range(mode: str) -> None:
    with pytest.raises(InputError) as caught:
        load_image(Image.new(mode, (9, 9)))
    assert caught.value.name == "E_IMAGE_MODE"


def test_empty_picture() -> None:
    with pytest.raises(InputError):
        load_image(Image.new("RGB", (0, 5)))


def test_unloaded_damaged_picture() -> None:
    with pytest.raises(InputError) as caught:
        load_image(Image.open(io.BytesIO(PNG[: len(PNG) // 2])))
    assert caught.value.name == "E_IMAGE_DECODE"


@pytest.mark.parametrize("name", GOOD)
def test_flipped_bytes_decode_or_raise_input_error(name: str) -> None:
    rng = np.random.default_rng(len(name))
    original = np.frombuffer(GOOD[name], dtype=np.uint8)
    limits = Limits(max_image_pixels=1_000_000)
    decoded = 0
    for _ in range(300):
        data = original.copy()
        count = int(rng.integers(1, 8))
        limit = len(data) if rng.random() < 0.5 else min(64, len(data))
        data[rng.integers(0, limit, count)] = rng.integers(0, 256, count)
        try:
            image = load_image(data.tobytes(), limits)
        except InputError:
            continue
        else:
            decoded += 1
            assert image.mode == "RGB"
            assert image.width * image.height <= 1_000_000
    # A PNG's checksums see every byte, so that only those that were drawn as they were pass.
    assert decoded < (5 if name == "png" else 300)
    assert decoded or name == "png"


def test_random_bytes_behind_each_magic() -> None:
    rng = np.random.default_rng(5)
    for magic in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "):
        for size in (1, 19, 111, 2000):
            for _ in range(20):
                with pytest.raises(InputError):
                    load_image(magic + rng.bytes(size), Limits(max_image_pixels=1_000_000))


def test_threads_may_load_at_once() -> None:
    expected = np.asarray(load_image(PNG))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                same(load_image(PNG), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
