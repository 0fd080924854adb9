"""liblatrt as another project gets it: installed, found, compiled against, without Python."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from la_trt.api import LookAgain
from tests.cpp import BUILD, ROOT, build, needs_cpp, run
from tests.embedding.make_golden import GOLDEN, pictures
from tests.native.helpers import needs_native

pytestmark = [needs_cpp, needs_native, pytest.mark.slow, pytest.mark.timeout(1200)]

BUNDLE = GOLDEN / "bundle"
QUESTION = "How many red circles are there?"


@pytest.fixture(scope="module")
def prefix() -> Path:
    """Where `cmake --install` put it, kept between runs like the build itself."""
    path = build("latrt").parent / "installed"
    run("cmake", "-S", ROOT, "-B", BUILD, "-DLATRT_TESTS=ON")
    run("cmake", "--install", BUILD, "--prefix", path, "--component", "embedding")
    return path


@pytest.fixture(scope="module")
def examples(prefix: Path) -> Path:
    """The C++ examples, built outside the tree against the installed package alone."""
    source, made = ROOT / "examples" / "cpp", ROOT / "build" / "examples"
    made.mkdir(parents=True, exist_ok=True)
    with (made / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", source, "-B", made, f"-DCMAKE_PREFIX_PATH={prefix}")
        run("cmake", "--build", made)
    return made


@pytest.fixture(scope="module")
def model() -> LookAgain:
    return LookAgain.from_bundle(BUNDLE, backend="native", threads=1)


def test_the_installed_files_are_complete(prefix: Path) -> None:
    names = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    for end in (
        "include/latrt/latrt.h",
        "include/latrt/latrt.hpp",
        "cmake/latrt/latrt-config.cmake",
        "cmake/latrt/latrt-config-version.cmake",
        "cmake/latrt/latrt-targets.cmake",
        "pkgconfig/latrt.pc",
    ):
        assert any(name.endswith(end) for name in names), (end, names)


def test_the_library_exports_its_c_api_alone(prefix: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    library = next(prefix.rglob("liblatrt.so.0"))
    lines = run("nm", "-D", "--defined-only", library).splitlines()
    names = [line.split()[-1] for line in lines]
    header = (ROOT / "csrc" / "include" / "latrt" / "latrt.h").read_text()
    ours = [name for name in names if name.startswith("latrt_")]
    assert len(ours) == header.count("\nLATRT_API ")
    # What the standard library's templates leave behind is weak and not ours.
    assert not [name for name in names if "latrt" in name and name not in ours]


def test_the_headers_are_plain_c_and_pkg_config_finds_them(prefix: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which("pkg-config") is None:
        pytest.skip("a C compiler or pkg-config is not installed")
    code = tmp_path / "main.c"
    code.write_text(
        "#include <latrt/latrt.h>\n#include <stdio.h>\n"
        "int main(void) { puts(latrt_version()); latrt_model* m; "
        'return latrt_open("/none", 0, &m) == LATRT_BUNDLE ? 0 : 1; }\n'
    )
    where = next(prefix.rglob("latrt.pc"))
    library = next(prefix.rglob("liblatrt.so.0")).parent
    flags = run("env", f"PKG_CONFIG_PATH={where.parent}", "pkg-config",
                "--cflags", "--libs", "latrt").split()  # fmt: skip
    program = tmp_path / "main"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    run(compiler, *strict, code, "-o", program, *flags, f"-Wl,-rpath,{library}")
    assert run(program).count(".") == 2


@pytest.mark.parametrize("suffix", ["ppm", "png"])
def test_the_example_answers_as_python_does(
    suffix: str, examples: Path, model: LookAgain, tmp_path: Path
) -> None:
    if suffix == "png" and "PNG_LIBRARY" not in (examples / "CMakeCache.txt").read_text():
        pytest.skip("the example was built without libpng")
    path = tmp_path / f"picture.{suffix}"
    pictures()[0].save(path)
    for policy in ("copy", "text"):
        done = subprocess.run(
            [examples / "latrt_ask", BUNDLE, path, QUESTION, policy, "40"],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        want = model.generate([pictures()[0]], QUESTION, policy=policy, max_tokens=40)
        assert done.stdout.decode() == want.text + "\n"


def test_the_example_names_what_is_wrong(examples: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.ppm"
    Image.new("RGB", (300, 1)).save(path)
    for bundle, code, name in ((tmp_path, 4, "E_MISSING_FILE"), (BUNDLE, 3, "E_IMAGE_ASPECT")):
        done = subprocess.run(
            [examples / "latrt_ask", bundle, path, QUESTION], capture_output=True, text=True
        )
        assert done.returncode == code
        assert f"error[{name}]" in done.stderr


@pytest.fixture
def service(examples: Path) -> Iterator[int]:
    """The port of the running C++ service."""
    command = [examples / "latrt_service", BUNDLE, "0", "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.terminate()


def talk(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:  # closed on a request that was not read to its end
            return b""


def test_the_service_answers_and_survives_bad_requests(service: int, model: LookAgain) -> None:
    image, question = pictures()[1], QUESTION.encode()
    header = f"ask {image.width} {image.height} {len(question)}\n".encode()
    for bad in (b"", b"hello\n", b"ask 0 5 1\nx", b"ask 9999999 9999999 1\n", header + b"short"):
        assert talk(service, bad) in (b"error E_REQUEST\n", b"")
    thin = b"ask 300 1 1\n" + bytes(900) + b"?"
    assert talk(service, thin) == b"error E_IMAGE_ASPECT\n"
    want = model.generate([image], QUESTION, max_tokens=40)
    with socket.create_connection(("127.0.0.1", service), timeout=60) as gone:
        gone.sendall(header + image.tobytes() + question)  # and leaves without reading
    for _ in range(3):
        reply = talk(service, header + image.tobytes() + question)
        assert reply == b"ok\n" + want.text.encode()
