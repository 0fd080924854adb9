"""Cold-start data: exactly one reflection between the reasoning and the conclusion of answers.

The paper's first stage (section 5, step 1) takes 2,000 answers of LLaVA-CoT-100k. Where the
reflections come from is a function of the example: a file of them, or a callable of one's own.

`python -m train.reflections --data train.jsonl --source reflections.jsonl --output cold.jsonl`
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from la_trt.errors import InputError, UsageError
from la_trt.files.atomic import atomic_file
from la_trt.files.strict_json import parse_json
from la_trt.tags import ALL_TAGS, parse_tags
from train.command import run
from train.data import Example, RowError, read_examples, to_row

ReflectionSource = Callable[[Example], str | None]
_ORDER = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


def with_reflection(response: str, reflection: str) -> str:
    """The response with `<REFLECTION>reflection</REFLECTION>` before its CONCLUSION.

    What stands between REASONING and CONCLUSION (blank lines, as a rule) then stands on both
    sides. Raises RowError: the response is not SUMMARY, CAPTION, REASONING and CONCLUSION once
    each in that order, or the reflection is empty or holds a tag.
    """
    parsed = parse_tags(response)
    names = tuple(section.name for section in parsed.sections)
    if "REFLECTION" in names:
        raise RowError("reflects already", "a response with a reflection of its own")
    if parsed.flaw or names != _ORDER:
        raise RowError("malformed response", parsed.flaw or f"sections {', '.join(names)}")
    if not reflection.strip():
        raise RowError("no reflection", "the source gave none")
    if any(tag in reflection for tag in ALL_TAGS):
        raise RowError("tag in reflection", "a reflection is plain text")
    reasoning, concluded = parsed.sections[2], parsed.sections[3]
    between = response[reasoning.end : concluded.start]
    return (
        f"{response[: reasoning.end]}{between}<REFLECTION>{reflection.strip()}</REFLECTION>"
        f"{between}{response[concluded.start :]}"
    )


def cold_start(
    examples: Iterable[Example], source: ReflectionSource, num: int, skipped: Counter[str]
) -> Iterator[Example]:
    """The first `num` examples that a reflection could be put into; `skipped` counts the others
    by reason."""
    made = 0
    for example in examples:
        if made == num:
            return
        try:
            response = with_reflection(example.response or "", source(example) or "")
        except RowError as error:
            skipped[error.reason] += 1
            continue
        made += 1
        yield replace(example, response=response)


def reflections_of_file(path: Path) -> ReflectionSource:
    """A source of the rows {"id", "reflection"} of a JSONL file. Raises InputError E_DATA."""
    found: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}\ngive a JSONL file", name="E_DATA") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where=where, todo="correct it", error=InputError, name="E_DATA")
        name = row.get("id") if isinstance(row, dict) else None
        text = row.get("reflection") if isinstance(row, dict) else None
        if not isinstance(name, (str, int)) or not isinstance(text, str):
            raise InputError(f"{where}: expected id and reflection", name="E_DATA")
        found[str(name)] = text
    return lambda example: found.get(example.id)


def load_callable(spec: str) -> Callable[..., Any]:
    """The callable that `module:name` names. Raises UsageError."""
    module, _, name = spec.partition(":")
    try:
        made = getattr(import_module(module), name) if module and name else None
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{spec!r}: {error}\nname it as module:function") from None
    if not callable(made):
        raise UsageError(f"{spec!r}: not a callable\nname it as module:function")
    return made  # type: ignore[no-any-return]


def build(
    data: Path, images: Path | None, source: ReflectionSource, output: Path, num: int, seed: int
) -> dict[str, Any]:
    """The counts of a cold-start file, which is written whole or not at all."""
    skipped: Counter[str] = Counter()
    reader = read_examples(data, images, seed=seed, require=("response",))
    written = 0
    with atomic_file(output) as file:
        for example in cold_start(reader, source, num, skipped):
            row = to_row(example, output.parent)
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += 1
    return {
        "written": written,
        "rows_passed": reader.position,
        "skipped": dict(sorted((skipped + reader.skipped).items())),
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="JSONL of answers")
@click.option("--images", type=click.Path(path_type=Path), help="where its images are")
@click.option("--source", required=True, help="FILE.jsonl of id and reflection, or module:function")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSONL to write")
@click.option(
    "--num", type=click.IntRange(min=0), default=2000, show_default=True, help="answers wanted"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="of the order of the rows",
)
def main(data: Path, images: Path | None, source: str, output: Path, num: int, seed: int) -> None:
    """Put one reflection into each of NUM answers."""
    path = Path(source)
    chosen = reflections_of_file(path) if path.suffix == ".jsonl" else load_callable(source)
    counts = build(data, images, chosen, output, num, seed)
    click.echo(json.dumps(counts))


if __name__ == "__main__":
    sys.exit(run(main, goes_on=""))
