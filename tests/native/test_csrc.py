"""The C++ alone: built by CMake, its own tests run by CTest."""

from __future__ import annotations

import pytest

from tests.cpp import build, needs_cpp, run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_cpp
def test_the_kernels_pass_their_tests() -> None:
    output = run("ctest", "--test-dir", build(), "--output-on-failure")
    assert "100% tests passed" in output
