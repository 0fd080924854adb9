"""Runs the stages that are not there yet, a few at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from la_trt.errors import GateError, InputError, MachineError
from la_trt.files.atomic import atomic_file, try_lock
from train.experiments.code import REPOSITORY, code_version
from train.experiments.kept import find_kept, input_digests, keep, note_inputs
from train.experiments.stages import MARKER, Finished, Stage, in_order, keys_of, read_marker

PROGRESS = "time.json"  # minutes spent by runs that were cut off
_POLL_S = 0.05
Say = Callable[[str], None]


@dataclass(slots=True)
class _Running:
    stage: Stage
    directory: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    before: float
    started: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.started) / 60


class Runner:
    """Knows what is done below `work`, what is missing, and runs it.

    A stage's directory is named by its key, so that another setting, input or code version never
    meets older files; a run that was cut off goes on in its directory. `keep_stale` also takes
    results of an older code version; `stale` names them.

    `kept`: where small results are kept for good. What is there with the same settings is taken
    as the result, by whatever version of the code it was made; a stage that others build on runs
    again only where its files are missing and one of those others must run.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        inputs: Mapping[str, Path],
        work: Path,
        *,
        kept: Path | None = None,
        keep_stale: bool = False,
        version: Callable[[Sequence[str]], str] = code_version,
    ) -> None:
        self.stages = in_order(stages)
        self.work = work.resolve()
        self._inputs = {f"@{name}": path.resolve() for name, path in inputs.items()}
        self._kept_in = kept or self.work / "kept"
        self._digests = input_digests(inputs, self._kept_in)
        self.keys = keys_of(self.stages, self._digests, version)
        self._by_name = {stage.name: stage for stage in self.stages}
        self._keep_stale = keep_stale
        self._finished = self._look()
        found = ((s, find_kept(s, self.keys[s.name].settings, self._kept_in)) for s in self.stages)
        self._kept = {stage.name: made for stage, made in found if made is not None}

    def _look(self) -> dict[str, list[Finished]]:
        """The finished runs below `work`, by stage name."""
        found: dict[str, list[Finished]] = {}
        for directory in sorted(self.work.glob("*/*")) if self.work.is_dir() else ():
            made = read_marker(directory)
            if made is not None:
                found.setdefault(directory.parent.name, []).append(made)
        return found

    def result(self, stage: Stage) -> Finished | None:
        """The run whose small files are the stage's result, in `work` or kept; None without one."""
        return self.done(stage) or self._kept.get(stage.name)

    def done(self, stage: Stage) -> Finished | None:
        """The finished run of a stage with all its files in `work`, None where there is none."""
        keys = self.keys[stage.name]
        usable = [f for f in self._finished.get(stage.name, []) if _has(f, stage.result)]
        exact = [f for f in usable if f.keys.full == keys.full]
        if exact or not self._keep_stale:
            return exact[0] if exact else None
        older = [f for f in usable if f.keys.settings == keys.settings]
        return max(older, key=lambda f: (f.directory / MARKER).stat().st_mtime, default=None)

    @property
    def stale(self) -> list[str]:
        """Stages whose result is of another code version."""
        found = [(stage, self.result(stage)) for stage in self.stages]
        return [s.name for s, f in found if f and f.keys.full != self.keys[s.name].full]

    def directory(self, stage: Stage) -> Path:
        """Where the stage's files are, or will be."""
        made = self.done(stage)
        return made.directory if made else self._own(stage)

    def _own(self, stage: Stage) -> Path:
        return self.work / stage.name / self.keys[stage.name].full[:12]

    def minutes(self, stage: Stage) -> float:
        """How long the stage takes: as others of its kind did, else the plan's guess."""
        took = [f.minutes for f in self._runs() if f.kind == stage.kind]
        return sum(took) / len(took) if took else stage.minutes

    def _runs(self) -> list[Finished]:
        """Every finished run once."""
        runs = [*(f for of in self._finished.values() for f in of), *self._kept.values()]
        return list({f.keys.full: f for f in runs}.values())

    def remaining(self) -> list[Stage]:
        """The stages that must run, in order: those without a result that nobody builds on, and
        those whose files one of the others needs."""
        used = {name for stage in self.stages for name in stage.needs}
        wanted = {s.name for s in self.stages if s.name not in used and self.result(s) is None}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted |= {n for n in stage.needs if self.done(self._by_name[n]) is None}
        return [stage for stage in self.stages if stage.name in wanted]

    def run(self, *, jobs: int = 1, say: Say = print, keep_going: bool = False) -> None:
        """Nothing; every stage is done. Raises GateError naming those that failed.

        Interrupted, it ends its processes; the next run goes on where they were.
        """
        waiting, running, failed = self.remaining(), list[_Running](), list[str]()
        self._check_inputs(waiting)
        self.work.mkdir(parents=True, exist_ok=True)
        with _locked(self.work):
            note_inputs(self._digests, self._kept_in)
            self._run(waiting, running, failed, jobs, say, keep_going)
        if failed:
            raise GateError(
                f"stages failed: {', '.join(failed)}; {len(waiting)} were not run\n"
                f"see {self.work / failed[0]}, correct it, and run the same command again",
                name="E_STAGE",
            )

    def _check_inputs(self, stages: Sequence[Stage]) -> None:
        for name in dict.fromkeys(name for stage in stages for name in stage.inputs):
            if not self._inputs[f"@{name}"].exists():
                raise InputError(f"{self._inputs[f'@{name}']}: is not there", name="E_MISSING")

    def _run(
        self,
        waiting: list[Stage],
        running: list[_Running],
        failed: list[str],
        jobs: int,
        say: Say,
        keep_going: bool,
    ) -> None:
        try:
            while waiting or running:
                if not failed or keep_going:
                    self._start(waiting, running, jobs, say)
                if not running:
                    break
                time.sleep(_POLL_S)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    if not self._end(one, say):
                        failed.append(one.stage.name)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
                self._note_time(one)
                one.log.close()

    def _start(self, waiting: list[Stage], running: list[_Running], jobs: int, say: Say) -> None:
        """Start what can run, up to `jobs` at a time."""
        for stage in list(waiting):
            if len(running) >= jobs:
                return
            if any(self.done(self._by_name[name]) is None for name in stage.needs):
                continue
            waiting.remove(stage)
            left = sum(self.minutes(s) for s in [*waiting, stage]) / jobs
            say(f"{stage.name}: about {self.minutes(stage):.0f} min; {left / 60:.1f} h left in all")
            running.append(self._launch(stage))

    def _launch(self, stage: Stage) -> _Running:
        directory = self._own(stage)
        directory.mkdir(parents=True, exist_ok=True)
        places = {s.name: self.directory(s) for s in self.stages if s.name in stage.needs}
        command = stage.command({**places, **self._inputs, "out": directory})
        log = (directory / "log.txt").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            preexec_fn=_die_with_parent,
        )
        before = _spent(directory)
        return _Running(stage, directory, process, log, before)

    def _end(self, one: _Running, say: Say) -> bool:
        """Whether the stage is done; its marker is written then."""
        one.log.close()
        stage, code = one.stage, one.process.returncode
        if code or not (one.directory / stage.result).exists():
            self._note_time(one)
            why = f"exit code {code}" if code else f"left no {stage.result}"
            say(f"{stage.name}: FAILED ({why}), see {one.directory / 'log.txt'}")
            return False
        keys = self.keys[stage.name]
        marker = {
            "name": stage.name,
            "kind": stage.kind,
            "key": keys.full,
            "settings_key": keys.settings,
            "module": stage.module,
            "arguments": stage.arguments,
            "minutes": round(one.minutes, 3),
        }
        with atomic_file(one.directory / MARKER) as file:
            file.write(json.dumps(marker, indent=1).encode() + b"\n")
        made = read_marker(one.directory)
        assert made is not None, "a marker that was just written"
        self._finished.setdefault(stage.name, []).append(made)
        kept = keep(stage, made, self._kept_in, self.work)
        if kept is not None:
            self._kept[stage.name] = kept
        say(f"{stage.name}: done in {one.minutes:.1f} min")
        return True

    def _note_time(self, one: _Running) -> None:
        with atomic_file(one.directory / PROGRESS) as file:
            file.write(json.dumps({"minutes": one.minutes}).encode())


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold the one lock of a work directory. Raises MachineError E_LOCKED."""
    with (work / ".lock").open("w") as file:
        if not try_lock(file.fileno()):
            raise MachineError(
                f"{work}: another process runs stages there\nwait for it", name="E_LOCKED"
            )
        yield


def _die_with_parent() -> None:
    """In the child: end when the runner does, however it ends, so that no stage runs twice."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _has(finished: Finished, result: str) -> bool:
    return (finished.directory / result).exists()


def _spent(directory: Path) -> float:
    try:
        return float(json.loads((directory / PROGRESS).read_bytes())["minutes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def plan_table(runner: Runner, jobs: int) -> str:
    """The plan as text: every stage, done or how long it will take, and the whole."""
    lines, total = [], 0.0
    measured = {f.kind for f in runner._runs()}
    waiting, stale = {s.name for s in runner.remaining()}, set(runner.stale)
    for stage in runner.stages:
        if stage.name in waiting:
            total += runner.minutes(stage)
            guess = "" if stage.kind in measured else " (planned)"
            state = f"{runner.minutes(stage):.1f} min{guess}"
        elif runner.result(stage) is None:
            state = "not needed any more"
        else:
            state = "done" if stage.name not in stale else "done by other code"
        lines.append(f"{stage.name:32} {state}")
    num = len(waiting)
    lines.append(
        f"{num} of {len(runner.stages)} stages to run: {total / 60:.1f} core hours, "
        f"{total / 60 / jobs:.1f} h with {jobs} at a time"
    )
    return "\n".join(lines)
