"""The image of an `image_url` part: a data URL, or a URL or file where the server allows it."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from la_trt.limits import Limits
from la_trt.serve.errors import ApiError, invalid
from la_trt.serve.fetch import Fetcher
from la_trt.serve.settings import ImageAccess


class ImageLoader:
    """Turns image URLs into encoded bytes. Blocking; safe between threads."""

    def __init__(
        self, access: ImageAccess, limits: Limits, *, fetcher: Fetcher | None = None
    ) -> None:
        self._limits = limits
        self._root = access.local_root.resolve() if access.local_root is not None else None
        self._fetcher = fetcher or Fetcher(access, max_bytes=limits.max_image_bytes)

    def load(self, url: str, param: str) -> bytes:
        """The encoded image. Raises ApiError 400 naming `param`."""
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return self._data(url, param)
        if scheme in ("http", "https"):
            return self._fetcher.get(url, param)
        if scheme == "file":
            return self._file(url, param)
        raise invalid(
            param, f"{param}: expected a data URL such as data:image/png;base64,...", "invalid_url"
        )

    def _data(self, url: str, param: str) -> bytes:
        head, comma, payload = url.partition(",")
        media, *parameters = head[len("data:") :].split(";")
        if not comma or "base64" not in (p.strip().lower() for p in parameters):
            raise invalid(param, f"{param}: expected ;base64, in a data URL", "invalid_url")
        if media and not media.lower().startswith("image/"):
            raise invalid(param, f"{param}: expected image/..., got another type", "invalid_url")
        if len(payload) * 3 // 4 > self._limits.max_image_bytes + 3:
            raise _too_large(param, self._limits)
        try:
            plain = (unquote(payload) if "%" in payload else payload).encode("ascii")
            # Mail and Python's encodebytes break the lines.
            return base64.b64decode(b"".join(plain.split()), validate=True)
        except (binascii.Error, ValueError):
            raise invalid(param, f"{param}: not valid base64", "invalid_url") from None

    def _file(self, url: str, param: str) -> bytes:
        """A regular file below the allowed directory, links resolved."""
        if self._root is None:
            raise invalid(
                param, f"{param}: local files are not allowed by this server", "url_not_allowed"
            )
        unreadable = invalid(param, f"{param}: no such image file", "invalid_url")
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise unreadable
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not path.is_relative_to(self._root):
                raise unreadable
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError, RuntimeError):
            raise unreadable from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise unreadable
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(self._limits.max_image_bytes + 1)
        except OSError:
            raise unreadable from None
        finally:
            os.close(descriptor)
        if len(data) > self._limits.max_image_bytes:
            raise _too_large(param, self._limits)
        return data


def _too_large(param: str, limits: Limits) -> ApiError:
    return invalid(
        param,
        f"{param}: more than the {limits.max_image_bytes} bytes that an image may have",
        "image_too_large",
    )
