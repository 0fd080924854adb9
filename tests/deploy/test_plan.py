"""The arithmetic of the fleet's plan, and that the page has what the command prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import fleet_plan
from benchmarks.fleet_plan import Demand, Question, floor_s
from benchmarks.roofline import GPUS

H100 = next(gpu for gpu in GPUS if gpu.name.startswith("H100"))


def test_replicas_by_hand() -> None:
    demand = Demand(peak=2.0, load_frac=0.5)
    # 864,000 a day are 10 a second, 20 at the peak; 2.5 of each replica's 5 are used.
    assert demand.replicas(864_000, 5.0) == 8
    assert demand.replicas(864_001, 5.0) == 9
    assert demand.replicas(1, 5.0) == 2


def test_a_floor_is_no_lower_than_its_parts() -> None:
    question = Question()
    one, many = floor_s(H100, question, 1, 16.0), floor_s(H100, question, 16, 16.0)
    # 7.6 billion weights of two bytes cross the bus of 3,350 GB/s for each of 300 tokens.
    assert one > 300 * 7.07e9 * 2 / 3350e9
    assert many < one / 3
    assert floor_s(H100, question, 1, 4.5) < one
    short = replace(question, answer_tokens=150)
    assert floor_s(H100, short, 1, 16.0) == pytest.approx(one / 2, rel=0.1)
    assert floor_s(H100, replace(question, copied_tokens=1), 16, 16.0) < many


def test_the_page_has_what_the_command_prints() -> None:
    printed = CliRunner().invoke(fleet_plan.main).output.strip()
    page = (Path(__file__).parents[2] / "docs/fleet.md").read_text()
    for part in printed.split("\n\n"):
        assert part in page, "run python -m benchmarks.fleet_plan and put its tables into the page"
