"""What people see: the answer as it comes, with every second look marked, and progress bars."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from la_trt.errors import MachineError, UsageError
from la_trt.events import Event, ReflectionEvent, ReinjectEvent, Result, TokenEvent
from la_trt.tags import ALL_TAGS

if TYPE_CHECKING:
    from rich.console import Console

    from la_trt.speculate import NgramDrafter

ProgressCallback = Callable[[str, int, int], None]

_TAG = re.compile("(" + "|".join(map(re.escape, ALL_TAGS)) + ")")
# A model may have learnt escape sequences; a terminal must never get to see one.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters other than tab and line feed."""
    return _CONTROL.sub("\ufffd", text)


def describe_injection(event: ReinjectEvent) -> str:
    """One line: what was put into the context, or why nothing was."""
    if event.skipped:
        return f"no second look: {event.skipped.replace('_', ' ')}"
    return f"looks again: {event.num_tokens} visual tokens ({event.select}, {event.kind})"


class AnswerPrinter:
    """Writes events to a stream: styled on a terminal, with bracketed marks elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = _styled(stream)
        self._at_line_start = True
        self._reflecting = False

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, TokenEvent):
            self._text(printable(event.text))
        elif isinstance(event, ReinjectEvent):
            self._mark(describe_injection(event))
        elif isinstance(event, ReflectionEvent):
            self._reflecting = event.opened

    def finish(self) -> None:
        """End the last line."""
        if not self._at_line_start:
            self._write("\n", "")

    def _text(self, text: str) -> None:
        for piece in _TAG.split(text):
            if piece in ALL_TAGS:
                self._write(piece, "bold magenta" if "REFLECTION" in piece else "dim")
            elif piece:
                self._write(piece, "cyan" if self._reflecting else "")

    def _mark(self, line: str) -> None:
        self.finish()
        self._write(f"[{line}]\n", "bold yellow")

    def _write(self, text: str, style: str) -> None:
        if self._console is None:
            self._stream.write(text)
            self._stream.flush()
        else:
            self._console.print(
                text, style=style, end="", markup=False, highlight=False, soft_wrap=True
            )
        self._at_line_start = text.endswith("\n")


def _styled(stream: TextIO) -> Console | None:
    """A console for a terminal, None for a file or pipe."""
    if not stream.isatty():
        return None
    from rich.console import Console

    return Console(file=stream, emoji=False)


def print_stats(result: Result, drafter: NgramDrafter | None, stream: TextIO) -> None:
    """Counts and times of an answer, one a line; `drafter` guessed tokens of this one alone."""
    usage, timing = result.usage, result.timing
    tok_s = 1e3 / timing.tpot_ms if timing.tpot_ms > 0 else 0.0
    rows = [
        ("engine, policy", f"{result.engine}, {result.policy}"),
        ("finish reason", result.finish_reason),
        ("prompt", f"{usage.prompt_tokens} tokens, {usage.visual_tokens} of them visual"),
        ("answer", f"{usage.completion_tokens} tokens, {result.num_reflections} reflections"),
        ("re-injected", f"{usage.reinjected_tokens} visual tokens in {timing.reinject_ms:.1f} ms"),
        ("vision, prefill", f"{timing.vision_ms:.1f} ms, {timing.prefill_ms:.1f} ms"),
        ("first token", f"{timing.ttft_ms:.1f} ms"),
        ("decode", f"{timing.decode_ms:.1f} ms, {timing.tpot_ms:.2f} ms a token, {tok_s:.1f}/s"),
        ("total", f"{timing.total_ms:.1f} ms"),
    ]
    if drafter is not None:
        rows.append(("guesses", f"{drafter.num_drafted} tokens, {drafter.num_accepted} came true"))
    for name, value in rows:
        stream.write(f"{name:16} {value}\n")
    stream.flush()


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A callback `(stage, done, total)` that draws a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=None)

        def update(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {stage}", completed=done, total=total)

        yield update


def print_json(value: Any) -> None:
    """One JSON object on a line of stdout, with escapes where its encoding is not UTF-8."""
    encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "")
    click.echo(json.dumps(value, ensure_ascii=encoding != "utf8", allow_nan=False))


def note(message: str) -> None:
    """A line of progress for a person who waits; nothing where stderr is not a terminal."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr)


def quiet_drawing() -> None:
    """Keep matplotlib from talking of its font cache on stderr."""
    import logging

    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def check_picture(path: Path, flag: str, images: Sequence[Path] = ()) -> None:
    """Nothing; raises UsageError unless `path` names a PNG, MachineError if it cannot be written.

    `images`: those that are asked about, which are never written. Called before minutes of work,
    so that a slip of the pen costs none.
    """
    if path.exists() and any(image.exists() and path.samefile(image) for image in images):
        raise UsageError(f"{flag} {path}: is an image that is asked about\nchoose another name")
    if os.path.isdir(path):
        raise MachineError(
            f"{flag} {path}: is a directory\ngive the name of a PNG file", name="E_OUTPUT_EXISTS"
        )
    if path.suffix.lower() != ".png":
        raise UsageError(f"{flag} {path}: expected the name of a .png file")
    try:
        there = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as problem:
        raise MachineError(
            f"{flag} {path}: cannot be written ({problem.strerror})\nchoose another place",
            name="E_WRITE",
        ) from problem
