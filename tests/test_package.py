"""What is installed: a wheel that holds everything it needs, and runs from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import la_trt

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` makes where the C++ does not compile: that without it.

    A compiler that only fails stands for none; the native module itself is tested installed.
    """
    directory = tmp_path_factory.mktemp("wheel")
    settings = {"build-dir": str(directory / "build")}
    code = (
        "from scikit_build_core.build import build_wheel; "
        f"build_wheel({str(directory)!r}, {settings!r})"
    )
    env = {**os.environ, "CXX": "/bin/false"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    (path,) = directory.glob("*.whl")
    return path


def test_the_wheel_holds_all_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"la_trt-{la_trt.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in ("la_trt", "build_engines"):
        there = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}
        assert there and there <= names
    files = [p for p in (ROOT / "la_trt/assets").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assets = {str(p.relative_to(ROOT)) for p in files}
    assert "la_trt/assets/tiny/model.safetensors" in assets and assets <= names
    assert not [name for name in names if name.endswith(".pyc")]
    assert "la_trt/py.typed" in names
    roots = {name.split("/")[0] for name in names}
    assert not [name for name in names if "_native" in name]
    assert roots == {"la_trt", "build_engines", f"la_trt-{la_trt.__version__}.dist-info"}


def test_the_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import la_trt, sys; from la_trt.cli.source import shipped; print(la_trt.__file__);"
        "print(shipped()); assert 'torch' not in sys.modules"
    )
    # Without site, so that no editable installation is found before what was just unpacked.
    path = os.pathsep.join([str(site), *(p for p in sys.path if "site-packages" in p)])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(site / "la_trt/__init__.py"),
        str(site / "la_trt/assets/tiny"),
    ]


def test_importing_the_package_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import la_trt, la_trt.api, la_trt.session, la_trt.report.heatmap, la_trt.engines.onnx\n"
        "import la_trt.lookworld, la_trt.eval.lookworld, build_engines.build\n"
        "import la_trt.eval.runner, la_trt.eval.report, la_trt.eval.suites, la_trt.cli.eval\n"
        "[la_trt.eval.suites.suite(name) for name in la_trt.eval.suites.SUITES]\n"
        "la_trt.LookAgain, la_trt.make_options"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
