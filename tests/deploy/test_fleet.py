"""Two replicas on Ray Serve, one killed, a rolling update, growth: the drill, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
def test_no_accepted_request_is_lost(tmp_path: Path) -> None:
    output = tmp_path / "drill.json"
    small = ["--requests", "60", "--pictures", "20", "--max-tokens", "32"]
    command = [sys.executable, "-m", "benchmarks.fleet_drill", *small, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert output.exists(), done.stderr
    found = json.loads(output.read_text())
    assert found["kill"]["requests"] >= 60 and len(found["checks"]) >= 8
    assert all(found["checks"].values()), found
    assert done.returncode == 0
