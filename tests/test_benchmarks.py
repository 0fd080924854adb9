"""What the benchmarks make of their measurements: bounds of medians, ratios, checks, ages."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from math import comb
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import batch_steps, peer_plot, peer_turns, report
from benchmarks.peer_table import summarise, to_table
from benchmarks.peers import CHECK_DECODE, record_of
from benchmarks.report import RESULTS, bounds_of, median_and_bounds, median_ranks
from benchmarks.worker import Worker, WorkerEnded


def coverage(num: int, low: int, high: int) -> float:
    """How probable it is that the median lies between two of `num` ordered values (from 0)."""
    return sum(comb(num, below) for below in range(low + 1, high + 1)) / 2**num


@pytest.mark.parametrize(
    ("num", "ranks", "covered"),
    [
        (1, (0, 0), 0),
        (3, (0, 2), 1 - 2 / 8),
        (5, (0, 4), 1 - 2 / 32),
        (6, (0, 5), 1 - 2 / 64),
        (8, (0, 7), 1 - 2 / 256),
        (9, (1, 7), 1 - 2 * (1 + 9) / 512),
        (12, (2, 9), 1 - 2 * (1 + 12 + 66) / 4096),
        (20, (5, 14), 1 - 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) / 2**20),
    ],
)
def test_bounds_of_a_median_by_hand(num: int, ranks: tuple[int, int], covered: float) -> None:
    assert median_ranks(num) == ranks
    assert coverage(num, *ranks) == pytest.approx(covered)


def test_bounds_are_the_innermost_that_hold_95_percent() -> None:
    for num in range(6, 400):
        low, high = median_ranks(num)
        assert coverage(num, low, high) >= 0.95 > coverage(num, low + 1, high - 1), num
        assert bounds_of(num) == "95 %"
    for num in range(1, 6):
        assert median_ranks(num) == (0, num - 1) and coverage(num, 0, num - 1) < 0.95
        assert bounds_of(num) == "least to greatest"


def test_median_and_bounds_of_values_in_any_order() -> None:
    assert median_and_bounds([7.0, 1.0, 4.0]) == [4.0, 1.0, 7.0]
    assert median_and_bounds([float(9 - i) for i in range(9)]) == [5.0, 2.0, 8.0]


def test_a_ratio_is_over_the_first_engine_and_round_by_round() -> None:
    rates = {
        "first": {"decode": [2.0, 4.0, 8.0], "prefill": [1.0, 1.0, 1.0]},
        "other": {"decode": [3.0, 2.0, 8.0], "prefill": [10.0, 30.0, 20.0]},
    }
    assert peer_turns.ratio(rates, "other", "decode") == [1.0, 0.5, 1.5]
    assert peer_turns.ratio(rates, "other", "prefill") == [20.0, 10.0, 30.0]
    assert peer_turns.ratio(rates, "first", "decode") == [1.0, 1.0, 1.0]
    assert peer_turns.ratio(rates, "first", "decode", "other") == [1.0, 2 / 3, 2.0]


def test_ours_are_set_beside_the_peer_that_is_best_at_each_phase() -> None:
    rates = {
        "slow": {"decode": [1.0, 1.0, 9.0], "prefill": [30.0, 30.0, 10.0]},
        "quick": {"decode": [2.0, 4.0, 2.0], "prefill": [20.0, 20.0, 20.0]},
        "la-trt int4": {"decode": [3.0, 4.0, 4.0], "prefill": [60.0, 90.0, 5.0]},
    }
    assert peer_turns.beside_best_peer("512", rates) == [
        "- la-trt int4 behind 512, beside the best peer: decode 1.50 times quick (1.00 to 2.00), "
        "prefill 2.00 times slow (0.50 to 3.00)"
    ]
    assert peer_turns.beside_best_peer("512", {"la-trt int4": rates["la-trt int4"]}) == []


ENGINES = ("la-trt int8", "la-trt int4")
PEAKS = {"read_gb_s": 30.0}


class Canned:
    """A worker of steps of 10 ms; `tokens` is what it answers each time it is asked."""

    def __init__(self, tokens: Callable[[], int]) -> None:
        self._tokens = tokens
        self.hello: dict[str, Any] = {"version": "1", "load_s": 1.0}
        self.closed = False

    def ask(self, *, decode: int = 0, **_: Any) -> dict[str, Any]:
        token = self._tokens()
        return {
            "tokens": [token] * (decode + 1),
            "decode_s": [0.01] * decode,
            "prefill_s": 0.5,
            "reinject_s": [0.001],
            "peak_rss_bytes": 10**9,
        }

    def __enter__(self) -> Canned:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The benchmarks without engines: each answers token 7. `published`: result and table."""
    kept: dict[str, Any] = {"tokens": lambda: 7, "workers": []}

    def worker(*_: str) -> Canned:
        kept["workers"].append(Canned(kept["tokens"]))
        return kept["workers"][-1]

    def publish(name: str, result: dict[str, Any], table: str) -> None:
        kept["published"] = json.loads(json.dumps(result)), table

    def prepare(name: str, work: Path, threads: int) -> tuple[int, Path, list[str]]:
        return (4 if "int4" in name else 8), work, [name]

    for module in ("peer_turns", "batch_steps"):
        monkeypatch.setattr(f"benchmarks.{module}.publish", publish)
    for module in ("peer_turns", "batch_steps", "peers"):
        monkeypatch.setattr(f"benchmarks.{module}.Worker", worker)
        monkeypatch.setattr(f"benchmarks.{module}.prepare", prepare)
        monkeypatch.setattr(f"benchmarks.{module}.machine_peaks", lambda _: PEAKS)
    monkeypatch.setattr("benchmarks.peers.decoder_bytes", lambda _: 10**9)
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 0.0, 0.0))
    (tmp_path / "reference.json").write_text("[3, 7]")
    return kept


@pytest.mark.parametrize(
    ("main", "rounds", "bounds"),
    [
        (peer_turns.main, 6, "95 %"),
        (peer_turns.main, 3, "least to greatest"),
        (batch_steps.main, 3, "95 %"),  # of 16 turns each
    ],
)
def test_engines_are_checked_in_the_run_that_times_them(
    canned: dict[str, Any], tmp_path: Path, main: Any, rounds: int, bounds: str
) -> None:
    options = [*ENGINES, "--work", str(tmp_path), "--threads", "2", "--rounds", str(rounds)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    result, table = canned["published"]
    assert result["checks"] == {
        "la-trt int8": "same answer twice, first token number 2 of the reference",
        "la-trt int4": "same answer twice, first token 7",
    }
    for name, said in result["checks"].items():
        assert f"- {name}: {said}\n" in f"{table}\n"
    assert f"({bounds})" in table


@pytest.mark.parametrize("main", [peer_turns.main, batch_steps.main])
@pytest.mark.parametrize(
    ("tokens", "cause"),
    [
        (count().__next__, "the same prompt gave"),
        (lambda: 8, "first token 8 is none of the reference's"),
    ],
)
def test_wrong_answers_are_not_timed(
    canned: dict[str, Any], tmp_path: Path, main: Any, tokens: Callable[[], int], cause: str
) -> None:
    canned["tokens"] = tokens
    done = CliRunner().invoke(main, [*ENGINES, "--work", str(tmp_path), "--threads", "2"])
    assert done.exit_code == 1 and cause in done.output
    assert "published" not in canned and all(worker.closed for worker in canned["workers"])


def test_results_say_the_command_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "--name", "a b"])
    report.publish("speed", {"tok_s": 2}, "| a table |", runs=[1, 2])
    said = {
        "tok_s": 2,
        "command": "python -m benchmarks.speed --name 'a b'",
        "machine": report.describe_machine(),
    }
    assert json.loads((tmp_path / "speed.json").read_text()) == {**said, "runs": [1, 2]}
    text = (tmp_path / "speed.md").read_text()
    assert text.startswith(f"# speed\n\n`{said['command']}`\n\ncpu ")
    assert text.endswith("\n\n| a table |\n")
    out, err = capsys.readouterr()
    assert json.loads(out) == said and err == "| a table |\n"


ANSWERS = """
import json, os, sys
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    print("answering", line, file=sys.stderr, flush=True)
    print(json.dumps({"twice": 2 * json.loads(line)["number"]}), flush=True)
"""


def test_a_worker_that_dies_between_two_requests_is_named_with_what_it_said() -> None:
    with Worker(sys.executable, "-c", ANSWERS) as worker:
        assert worker.ask(number=4) == {"twice": 8}
        pid = worker.hello["pid"]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        said = 'running it ended with exit code -9: answering {"number": 4}'
        with pytest.raises(WorkerEnded, match=said):
            worker.ask(number=5)


@pytest.mark.parametrize("first", ["", "print({}, flush=True); input()", "print('{', end='')"])
def test_a_worker_that_ends_before_it_answers_is_named_with_what_it_said(first: str) -> None:
    script = f"{first}\nraise ValueError('no such weights')"
    with (
        pytest.raises(WorkerEnded, match=r"it ended with exit code 1: .*no such weights"),
        Worker(sys.executable, "-c", script) as worker,
    ):
        worker.ask(number=1)


def test_a_record_says_when_it_was_made(canned: dict[str, Any], tmp_path: Path) -> None:
    """Old and new records in one table: which are of another hour, and which do not say."""
    new = record_of("la-trt int8", tmp_path, 2, 1, CHECK_DECODE, 8)
    assert new["alone"]["mass_pairs"] == 4
    records = [
        {**new, "time": "2026-03-02T10:30+00:00"},
        {**new, "engine": "in the same hour", "time": "2026-03-02T09:31+00:00"},
        {**new, "engine": "before", "time": "2026-03-02T09:29+00:00"},
        {**new, "engine": "old", "alone": {**new["alone"]}},
        {**new, "engine": "older"},
    ]
    for record in records[3:]:
        del record["time"]
    del records[3]["alone"]["mass_pairs"]
    lines = to_table(summarise(records)).splitlines()
    assert "- last record: 2026-03-02 10:30 UTC" in lines
    assert "- made more than an hour before it: before 2026-03-02 09:29" in lines
    assert "- kept from an earlier run, of unknown time: old, older" in lines
    assert "- load average at the end of each: 1.5 to 1.5" in lines
    mass = [line for line in lines if "mass" in line]
    assert ["least to greatest" in line for line in mass] == [True, True, True, False, True]
    assert ", 95 %)" in mass[3]
    fresh = to_table(summarise([new]))
    assert "last record" in fresh and "earlier run" not in fresh and "before it" not in fresh


def test_the_picture_of_the_peers_shows_their_medians(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fastest engine on top; each bar as long as the results say."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    output = tmp_path / "images" / "speed.png"
    done = CliRunner().invoke(peer_plot.main, ["--output", str(output)])
    assert done.exit_code == 0, done.output
    assert output.read_bytes().startswith(b"\x89PNG")
    engines = json.loads((RESULTS / "peers.json").read_text())["engines"]
    for axes, kind in zip(drawn[0].axes, ("decode", "prefill"), strict=True):
        rates = sorted(engine["512"][f"{kind}_tok_s"] for engine in engines.values())
        assert [bar.get_width() for bar in axes.patches] == rates
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert set(names) == set(engines)
        assert rates[-1] == engines[names[-1]]["512"][f"{kind}_tok_s"]
