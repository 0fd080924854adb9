"""Whether reflections look: hand-made answers about a drawn scene; a run read from its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from la_trt.errors import InputError
from la_trt.lookworld import COLOURS, USUAL_COLOUR, Sample, Seen, WorldConfig, sample
from la_trt.tags import parse_tags
from train.looking import Looks, looks, main, read_run, summarise
from train.lookworld_rules import entries_seen_again

DRAWN = sample("test", 5, WorldConfig(min_objects=3, max_objects=5, error_rate=0.0), "place")
SEEN = DRAWN.scene.seen()


def entry(s: Seen, *, sized: bool = True) -> str:
    words = [s.size] if sized else []
    words += [s.colour, s.shape] + ([] if s.digit is None else [str(s.digit)])
    return f"{s.row},{s.col} {' '.join(words)};"


def other(s: Seen) -> Seen:
    """The object with another colour, not the usual one of its shape."""
    return s._replace(colour=next(c for c in COLOURS if c not in (s.colour, USUAL_COLOUR[s.shape])))


def answer(caption: list[Seen], again: str, verdict: str = "The reasoning holds: so left.") -> str:
    listed = " ".join(entry(s) for s in caption)
    return (
        f"<CAPTION>{listed}</CAPTION><REASONING>so left.</REASONING>"
        f"<REFLECTION>I look again: {again} {verdict}</REFLECTION><CONCLUSION>left</CONCLUSION>"
    )


NONE = Looks(
    misnamed=0,
    by_prior=0,
    named=0,
    repeated=0,
    misread=0,
    mended=0,
    spoiled=0,
    caption_right=False,
    correct=False,
)


def test_a_true_caption_repeated():
    text = answer(SEEN, " ".join(entry(s, sized=False) for s in SEEN))
    num = len(SEEN)
    assert looks(text, DRAWN, True) == replace(
        NONE, named=num, repeated=num, caption_right=True, correct=True
    )


def test_a_wrong_entry_repeated_and_mended():
    first, *rest = SEEN
    caption = [other(first), *rest]
    repeated = looks(answer(caption, entry(other(first))), DRAWN, False)
    assert repeated == replace(NONE, misnamed=1, named=1, repeated=1, misread=1)
    mended = looks(answer(caption, entry(first)), DRAWN, True)
    assert mended == replace(NONE, misnamed=1, named=1, misread=1, mended=1, correct=True)


def test_objects_that_the_prior_misnames():
    scene = sample("test-inverted", 5, WorldConfig(prior_strength=1.0), "describe").scene
    drawn = replace(DRAWN, scene=scene)
    seen = scene.seen()
    assert seen and all(USUAL_COLOUR[s.shape] != s.colour for s in seen)
    usual = [s._replace(colour=USUAL_COLOUR[s.shape]) for s in seen]
    assert looks(answer(usual, ""), drawn, False) == replace(
        NONE, misnamed=len(seen), by_prior=len(seen)
    )
    assert looks(answer([*map(other, seen)], ""), drawn, False) == replace(NONE, misnamed=len(seen))
    larger = [s._replace(size={"small": "large", "large": "small"}[s.size]) for s in seen[1:]]
    assert looks(answer(larger, ""), drawn, False) == NONE  # neither sizes nor what is missing


def test_a_right_entry_spoiled():
    first = SEEN[0]
    found = looks(answer(SEEN, entry(other(first))), DRAWN, False)
    assert found == replace(NONE, named=1, spoiled=1, caption_right=True)


def test_a_missed_object_found_and_an_invented_one_gone():
    first, *rest = SEEN
    found = looks(answer(rest, entry(first)), DRAWN, True)
    assert found == replace(NONE, named=1, misread=1, mended=1, correct=True)
    taken = {(s.row, s.col) for s in SEEN}
    row, col = next((r, c) for r in range(8) for c in range(8) if (r, c) not in taken)
    invented = Seen(row, col, "small", "red", "circle", None)
    gone = looks(answer([*SEEN, invented], f"{row},{col} nothing;"), DRAWN, True)
    assert gone == replace(NONE, named=1, misread=1, mended=1, correct=True)
    kept = looks(answer([*SEEN, invented], entry(invented)), DRAWN, False)
    assert kept == replace(NONE, named=1, repeated=1, misread=1)


def test_an_error_in_what_a_reflection_does_not_name_is_none():
    first, *rest = SEEN
    larger = first._replace(size="large" if first.size == "small" else "small")
    found = looks(answer([larger, *rest], entry(first, sized=False)), DRAWN, True)
    assert found == replace(NONE, named=1, repeated=1, correct=True)


def test_entries_of_the_derivation_are_not_looked_at():
    text = answer(SEEN, entry(SEEN[0]), f"The reasoning is wrong: {entry(SEEN[1])} so right.")
    assert looks(text, DRAWN, False).named == 1


def test_answers_in_another_form_name_nothing():
    for text in ("", "left", "<REFLECTION>I look again", answer([], "")):
        assert looks(text, DRAWN, False) == NONE


def test_the_worlds_own_reflections_are_true():
    """With errors in captions alone, every misread entry is mended and none spoiled."""
    world = WorldConfig(error_rate=1.0, caption_error_frac=1.0)
    found = []
    for k in range(60):
        drawn = sample("train", k, world, "colour", want_image=False)
        assert drawn.response.text
        found.append(looks(drawn.response.text, drawn, True))
    total = summarise(found)
    assert total["misread"] == total["mended"] >= 30 and total["spoiled"] == 0
    assert total["captions_right"] < 20 and total["correct_beside_wrong_caption"] > 30


def written(directory: Path, rows: list[tuple[str, str, bool]], **asked: object) -> Path:
    directory.mkdir()
    known = {"suite": "lookworld", "split": "test", "world": {"prior_strength": 0.9}}
    (directory / "report.json").write_text(json.dumps({"asked": {**known, **asked}}))
    lines = [json.dumps({"id": i, "text": text, "correct": right}) for i, text, right in rows]
    (directory / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return directory


def test_a_run_is_read_with_its_own_world(tmp_path: Path):
    world = WorldConfig(prior_strength=0.9)
    drawn = [sample("test", k, world, "colour", want_image=False) for k in range(4)]
    rows = [(f"test-colour-{k}", d.response.text, True) for k, d in enumerate(drawn)]
    run = written(tmp_path / "run", rows)
    assert read_run(run) == [looks(d.response.text, d, True) for d in drawn]
    main(["--run", str(run), "--output", str(tmp_path / "o" / "l.json")], standalone_mode=False)
    result = json.loads((tmp_path / "o" / "l.json").read_text())
    assert result["answers"] == 4 == len(result["by_answer"]) and result["named"] > 0
    sums = [sum(column) for column in zip(*result["by_answer"], strict=True)]
    names = ("misnamed", "by_prior", "named", "repeated", "misread", "mended", "spoiled")
    assert sums[:7] == [result[name] for name in names]


def test_what_is_no_such_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is not there"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="answers of pope"):
        read_run(written(tmp_path / "pope", [], suite="pope"))


def test_entries_are_read_in_the_words_of_the_world():
    world = WorldConfig(error_rate=1.0, caption_error_frac=1.0)
    named = 0
    for k in range(40):
        drawn: Sample = sample("train", k, world, want_image=False)
        cells = {(s.row, s.col): s for s in drawn.scene.seen()}
        for section in parse_tags(drawn.response.text).of("REFLECTION"):
            entries = entries_seen_again(section.body)
            named += len(entries)
            assert all(e.agrees(cells.get((e.row, e.col))) for e in entries), section.body
    assert named > 40
