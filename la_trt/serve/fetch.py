"""GET of an image from an allowed host, so that no request can reach into the own network."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from la_trt.serve.errors import ApiError, invalid
from la_trt.serve.settings import ImageAccess

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], list[str]]


class Fetcher:
    """Fetches over http and https from exactly the allowed hosts. Safe between threads.

    Host names are resolved once for each hop, every address that is not global is refused, and
    the connection goes to the address that was checked. `resolve` and `is_allowed` replace the
    system's resolver and that rule.
    """

    def __init__(
        self,
        access: ImageAccess,
        *,
        max_bytes: int,
        resolve: Resolve | None = None,
        is_allowed: Callable[[str], bool] | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in access.hosts)
        self._access = access
        self._max_bytes = max_bytes
        self._resolve = resolve or _resolve
        self._is_allowed = is_allowed or _is_global
        self._tls = ssl.create_default_context()

    def get(self, url: str, param: str) -> bytes:
        """The body of a 200 answer. Raises ApiError 400 naming `param`."""
        if not self._hosts:
            raise invalid(param, f"{param}: URLs are not allowed by this server", "url_not_allowed")
        deadline = time.monotonic() + self._access.timeout_s
        for _ in range(self._access.max_redirects + 1):
            target = self._target(url, deadline, param)
            try:
                answer = self._hop(target, deadline)
            except ApiError:
                raise
            except (OSError, http.client.HTTPException, ValueError):
                raise _failed(param) from None
            if answer.location is None:
                if answer.body is None:
                    raise _failed(param)
                return self._bounded(answer.body, param)
            url = urljoin(url, answer.location)
        raise invalid(param, f"{param}: too many redirects", "url_fetch_failed")

    def _bounded(self, body: bytes, param: str) -> bytes:
        if len(body) > self._max_bytes:
            raise invalid(
                param,
                f"{param}: more than the {self._max_bytes} bytes that an image may have",
                "image_too_large",
            )
        return body

    def _target(self, url: str, deadline: float, param: str) -> _Target:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise invalid(param, f"{param}: not a URL", "invalid_url") from None
        host = (parts.hostname or "").lower()
        if parts.scheme not in _PORTS or host not in self._hosts or "@" in parts.netloc:
            raise invalid(
                param, f"{param}: this host is not allowed by this server", "url_not_allowed"
            )
        port = _PORTS[parts.scheme] if port is None else port
        try:
            addresses = self._addresses(host, port, deadline)
        except OSError:
            raise _failed(param) from None
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise invalid(
                param, f"{param}: this host is not allowed by this server", "url_not_allowed"
            )
        return _Target(
            secure=parts.scheme == "https",
            host=host,
            port=port,
            address=addresses[0],
            path=_path(parts),
        )

    def _addresses(self, host: str, port: int, deadline: float) -> list[str]:
        """Asked for in a thread of its own: a resolver knows no deadline. Raises OSError."""
        found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

        def resolve() -> None:
            try:
                found.put(self._resolve(host, port))
            except OSError as error:
                found.put(error)
            except ValueError:  # no host name, UnicodeError among them
                found.put(OSError("no host name"))

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        try:
            answer = found.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _hop(self, target: _Target, deadline: float) -> _Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        with socket.create_connection((target.address, target.port), timeout=left) as plain:
            if plain.getpeername()[0] != target.address:
                raise OSError("connected elsewhere")
            if not target.secure:
                with _cut_off_at(plain, deadline):
                    return self._ask(plain, target, deadline)
            with (
                self._tls.wrap_socket(
                    plain, server_hostname=target.host, do_handshake_on_connect=False
                ) as secure,
                _cut_off_at(secure, deadline),
            ):
                secure.do_handshake()
                return self._ask(secure, target, deadline)

    def _ask(self, connected: socket.socket, target: _Target, deadline: float) -> _Answer:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = connected
        connection.request(
            "GET",
            target.path,
            headers={"accept": "image/*", "accept-encoding": "identity", "connection": "close"},
        )
        with connection.getresponse() as response:
            if response.status in _REDIRECTS:
                location = response.getheader("location")
                return _Answer(location=location) if location else _Answer()
            if response.status != 200:
                return _Answer()
            body = response.read(self._max_bytes + 1)
            # A body that was cut off reads like one that has ended.
            cut_off = bool(response.length) and len(body) <= self._max_bytes
        if cut_off or time.monotonic() >= deadline:
            raise TimeoutError
        return _Answer(body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    secure: bool
    host: str
    port: int
    address: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A redirect's location, or a body, or neither: refused."""

    location: str | None = None
    body: bytes | None = None


@contextlib.contextmanager
def _cut_off_at(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Shuts the socket down at the deadline: a peer that drips bytes meets no read timeout."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _path(parts: SplitResult) -> str:
    path = parts.path or "/"
    path = f"{path}?{parts.query}" if parts.query else path
    if not path.isascii() or any(c <= " " or c == "\x7f" for c in path):
        raise invalid(None, "image_url: not a URL", "invalid_url")
    return path


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _is_global(address: str) -> bool:
    """Whether an address belongs to the public internet, embedded IPv4 addresses included."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None and not inner.is_global:
            return False
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
            return inner.is_global
        if parsed.teredo is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


def _failed(param: str) -> ApiError:
    return invalid(param, f"{param}: the image could not be fetched", "url_fetch_failed")
