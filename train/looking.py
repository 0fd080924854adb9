"""Whether captions and reflections look at the image: what they name, held against it.

`python -m train.looking --run EVAL_DIR --output FILE.json` reads the answers of a finished
`la-trt eval --suite lookworld` run. An entry that a reflection names counts as misread where the
caption has it otherwise than the image, as mended where the reflection then says what is there.
A reflection that only repeats the caption mends nothing, whatever is put in again before it.
Objects whose colour or shape the caption has wrong are counted too, and those of them that it gives
their shape's usual colour, as the prior of language would.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from la_trt.errors import InputError
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import USUAL_COLOUR, Sample, sample
from la_trt.tags import parse_tags
from train.command import run
from train.lookworld_rules import caption_entries, entries_seen_again, lists_the_same
from train.rows import read_world


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What one answer names.

    In its caption, `misnamed`: objects that get another colour or shape at their cell; `by_prior`:
    those of them that get a shape in its usual colour. In its reflections, `named`: entries;
    `repeated`: as the caption has them; `misread`: those that the caption has otherwise than the
    image, in what the reflection names; `mended`: of these, named as the image has them;
    `spoiled`: the caption has them as the image does, the reflection otherwise. `caption_right`:
    the caption lists just what is there. `correct`: the conclusion is right.
    """

    misnamed: int
    by_prior: int
    named: int
    repeated: int
    misread: int
    mended: int
    spoiled: int
    caption_right: bool
    correct: bool


def looks(answer_text: str, drawn: Sample, correct: bool) -> Looks:
    """What the caption and the reflections of an answer to the sample's question name."""
    seen = drawn.scene.seen()
    listed = caption_entries(answer_text) or []
    there = {(s.row, s.col): s for s in seen}
    said = {(s.row, s.col): s for s in listed}
    pairs = [(s, said.get((s.row, s.col), s)) for s in seen]
    misnamed = [as_ for is_, as_ in pairs if (as_.colour, as_.shape) != (is_.colour, is_.shape)]
    named = repeated = misread = mended = spoiled = 0
    for section in parse_tags(answer_text).of("REFLECTION"):
        for entry in entries_seen_again(section.body):
            cell = (entry.row, entry.col)
            truth, caption = there.get(cell), said.get(cell)
            is_true, is_repeated = entry.agrees(truth), entry.agrees(caption)
            is_misread = caption != truth and not (is_true and is_repeated)
            named += 1
            repeated += is_repeated
            misread += is_misread
            mended += is_misread and is_true
            spoiled += caption == truth and not is_true
    return Looks(
        misnamed=len(misnamed),
        by_prior=sum(USUAL_COLOUR[s.shape] == s.colour for s in misnamed),
        named=named,
        repeated=repeated,
        misread=misread,
        mended=mended,
        spoiled=spoiled,
        caption_right=lists_the_same(listed, seen),
        correct=correct,
    )


def read_run(directory: Path) -> list[Looks]:
    """The looks of all answers of a finished LookWorld run. Raises InputError."""
    report, answers = directory / "report.json", directory / "answers.jsonl"
    for path in (report, answers):
        if not path.exists():
            raise InputError(f"{path}: is not there", name="E_MISSING")
    asked = json.loads(report.read_bytes())["asked"]
    if asked["suite"] != "lookworld":
        raise InputError(f"{directory}: answers of {asked['suite']}, not of lookworld")
    world, split = read_world(asked["world"]), asked["split"]
    found = []
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        family, index = row["id"].removeprefix(f"{split}-").rsplit("-", 1)
        drawn = sample(split, int(index), world, family, want_image=False)
        found.append(looks(row["text"], drawn, bool(row["correct"])))
    return found


def summarise(found: Sequence[Looks]) -> dict[str, Any]:
    """Sums over all answers, and how many answers are right beside a right and a wrong caption."""
    right = [one for one in found if one.caption_right]
    wrong = [one for one in found if not one.caption_right]
    names = ("misnamed", "by_prior", "named", "repeated", "misread", "mended", "spoiled")
    return {
        "answers": len(found),
        "captions_right": len(right),
        "correct_beside_right_caption": sum(one.correct for one in right),
        "correct_beside_wrong_caption": sum(one.correct for one in wrong),
        **{name: sum(getattr(one, name) for one in found) for name in names},
        "columns": [field.name for field in fields(Looks)],
        "by_answer": [[int(value) for value in asdict(one).values()] for one in found],
    }


@click.command(help=__doc__)
@click.option("--run", "directory", type=click.Path(path_type=Path), required=True,
              help="directory of a finished `la-trt eval --suite lookworld`")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file")
def main(directory: Path, output: Path) -> None:
    """Whether captions and reflections look at the image."""
    found = summarise(read_run(directory))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as file:
        file.write(json.dumps(found).encode() + b"\n")
    click.echo(
        f"{found['captions_right']} of {found['answers']} captions right; of {found['misnamed']} "
        f"objects misnamed {found['by_prior']} as the prior has them; of {found['named']} entries "
        f"named again {found['repeated']} as in the caption; of {found['misread']} that the "
        f"caption has wrong {found['mended']} mended; {found['spoiled']} spoiled",
        err=True,
    )


if __name__ == "__main__":
    sys.exit(run(main, goes_on=""))
