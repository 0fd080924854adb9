"""Images from elsewhere: only from where the server was told, and never from the own network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from la_trt.limits import Limits
from la_trt.serve.errors import ApiError
from la_trt.serve.fetch import Fetcher, _is_global
from la_trt.serve.images import ImageLoader
from la_trt.serve.settings import ImageAccess
from tests.serve.running import chat, data_url, open_bundle, png, running

PICTURE = png()


class _Site(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/drip.png":
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            for _ in range(60):
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
            return
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        status = 200 if self.path.endswith(".png") else 404
        body = PICTURE * (40 if self.path == "/large.png" else 1)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def fetcher(port: int, **changes: object) -> Fetcher:
    """Asks the test's site under the names a.test and b.test; only a.test is allowed."""
    access = ImageAccess(hosts=("a.test",), timeout_s=float(str(changes.pop("timeout_s", 10))))
    given: dict[str, object] = {
        "max_bytes": 10 * len(PICTURE),
        "resolve": lambda host, port: ["127.0.0.1"],
        "is_allowed": lambda address: True,
    }
    return Fetcher(access, **(given | changes))  # type: ignore[arg-type]


def refusal(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        call()
    assert refused.value.status == 400 and refused.value.param == "p"
    return refused.value


def test_an_allowed_host_is_asked_and_redirects_are_followed(site: int) -> None:
    at = f"http://a.test:{site}"
    assert fetcher(site).get(f"{at}/x.png", "p") == PICTURE
    assert fetcher(site).get(f"{at}/to//x.png", "p") == PICTURE
    assert fetcher(site).get(f"{at}/to//to//to//x.png", "p") == PICTURE
    refused = refusal(lambda: fetcher(site).get(f"{at}/to//to//to//to//x.png", "p"))
    assert "redirects" in str(refused)


@pytest.mark.parametrize(
    "url",
    [
        "http://b.test:{port}/x.png",
        "http://a.test:{port}/to/http://b.test:{port}/x.png",
        "http://a.test:{port}/to/file:///etc/passwd",
        "http://a.test@b.test:{port}/x.png",
        "http://user@a.test:{port}/x.png",
        "http://a.test.:{port}/x.png",
        "ftp://a.test/x.png",
    ],
)
def test_other_hosts_are_refused_at_every_hop(site: int, url: str) -> None:
    refused = refusal(lambda: fetcher(site).get(url.format(port=site), "p"))
    assert refused.code == "url_not_allowed"


def test_addresses_that_are_not_global_are_refused(site: int) -> None:
    _Site.asked.clear()
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "8.8.8.8 127.0.0.1"):
        found = fetcher(site, resolve=lambda h, p, a=address: a.split(), is_allowed=_is_global)
        refused = refusal(lambda f=found: f.get(f"http://a.test:{site}/x.png", "p"))  # type: ignore[misc]
        assert refused.code == "url_not_allowed"
    assert not _Site.asked, "not even a connection"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_global(address: str, allowed: bool) -> None:
    assert _is_global(address) is allowed


def test_sizes_errors_and_slowness_are_bounded(site: int) -> None:
    at = f"http://a.test:{site}"
    assert refusal(lambda: fetcher(site).get(f"{at}/large.png", "p")).code == "image_too_large"
    assert refusal(lambda: fetcher(site).get(f"{at}/none", "p")).code == "url_fetch_failed"
    assert refusal(lambda: fetcher(1).get("http://a.test:1/x.png", "p")).code == "url_fetch_failed"
    # Bytes that keep coming, one by one, meet the deadline of the whole fetch.
    slow = fetcher(site, timeout_s=0.5)
    assert refusal(lambda: slow.get(f"{at}/drip.png", "p")).code == "url_fetch_failed"
    # So does a resolver that takes its time.
    never = threading.Event()
    stuck = fetcher(site, timeout_s=0.5, resolve=lambda host, port: never.wait(60) and [])
    assert refusal(lambda: stuck.get(f"{at}/x.png", "p")).code == "url_fetch_failed"
    never.set()
    unasked = Fetcher(ImageAccess(), max_bytes=1)
    assert refusal(lambda: unasked.get(f"{at}/x.png", "p")).code == "url_not_allowed"


def test_local_files_only_below_the_allowed_directory(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a b.png").write_bytes(PICTURE)
    outside.write_bytes(PICTURE)
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "sub" / "a b.png")
    loader = ImageLoader(ImageAccess(local_root=root), Limits())
    assert loader.load(f"file://{root}/sub/a%20b.png", "p") == PICTURE
    assert loader.load(f"file://{root}/inner.png", "p") == PICTURE
    for url in (
        f"file://{outside}",
        f"file://{root}/../outside.png",
        f"file://{root}/%2e%2e/outside.png",
        f"file://{root}/link.png",
        f"file://{root}/sub",
        f"file://{root}/missing.png",
        f"file://elsewhere{root}/sub/a%20b.png",
        f"file://{root}/a%00b",
        "file:///dev/zero",
    ):
        refused = refusal(lambda u=url: loader.load(u, "p"))  # type: ignore[misc]
        assert refused.code == "invalid_url" and str(tmp_path) not in str(refused)
    small = ImageLoader(ImageAccess(local_root=root), Limits(max_image_bytes=50))
    path = f"file://{root}/sub/a%20b.png"
    assert refusal(lambda: small.load(path, "p")).code == "image_too_large"
    assert refusal(lambda: small.load(data_url(PICTURE), "p")).code == "image_too_large"


def test_a_request_may_name_a_local_file_where_allowed(
    bundle: Path, backend: str, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    access = ImageAccess(local_root=tmp_path)
    with running(lambda: open_bundle(bundle, backend, max_batch=1), images=access) as server:
        parts = [
            {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/x.png"}},
            {"type": "image_url", "image_url": {"url": data_url(PICTURE)}},
            {"type": "text", "text": "Alike?"},
        ]
        request = chat(messages=[{"role": "user", "content": parts}])
        status, answer = server.post("/v1/chat/completions", request)
        assert status == 200 and answer["lookagain"]["choices"][0]["visual_tokens"] == 8
        assert server.engine.num_vision == 1, "the same image, however it came"
