"""Distillation: a trained model answers, judges vote, what they keep becomes training data.

The paper's third stage (section 5, step 3): Qwen-Zero answers 40,000 questions; answers that two
or more judges object to are corrected. `python -m train.distill --ckpt DIR --output zero.jsonl
--num 40000` asks questions of LookWorld's train split, or those of `--data FILE.jsonl`. The output
is read by `train.data.read_examples`. Pictures are not stored: LookWorld's are named and drawn
again, others stay where they are. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import click

from la_trt.api import make_options
from la_trt.errors import MachineError, UsageError
from la_trt.events import Result
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import FAMILIES, WorldConfig
from la_trt.tags import parse_tags
from train.answering import model_options, open_model
from train.asker import Asker
from train.command import run
from train.data import Example, ExampleReader, LookWorldRef, lookworld_example, to_row
from train.inputs import digest
from train.journal import Journal
from train.lookworld_rules import lookworld_verifiers
from train.options import config_options
from train.progress import RunLog
from train.ranges import SEED, at_least, check
from train.reflections import load_callable
from train.rows import world_of_text
from train.tasks import SEED_STRIDE
from train.verifiers import CallableVerifier, Rules, Verifier, judge

SUMMARY_SUFFIX = ".summary.json"
JOURNAL_SUFFIX = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """What is asked, how it is answered, and how votes decide.

    `num`: questions asked; fewer where the data has fewer. `policy`: what looks again while the
    answers are made; the paper's Qwen-Zero reflects on text alone. `veto`: verifiers, by comma,
    whose objection alone rejects. `split`, `first`, `world`: of LookWorld's questions, which take
    turns by family; `world` is JSON of what differs from the default WorldConfig. In one's own
    data a wrong conclusion alone rejects, since few judges can object there.
    `reasoning_length`: of reasonings written as corrections.
    """

    num: int = 1000
    seed: int = 0
    policy: str = "text"
    temperature: float = 0.0
    max_tokens: int = 448
    batch: int = 16
    quorum: int = 2
    veto: str = "format"
    on_reject: Literal["correct", "drop"] = "correct"
    split: Literal["train", "validation"] = "train"
    first: int = 0
    world: str = "{}"
    reasoning_length: int = 3

    def __post_init__(self) -> None:
        one = at_least(1)
        check(self, num=one, batch=one, max_tokens=one, seed=SEED)
        if self.split not in ("train", "validation"):
            raise UsageError(f"split: expected train or validation, got {self.split!r}")
        WorldConfig(reasoning_length=self.reasoning_length)
        if self.first < 0 or self.first + self.num > SEED_STRIDE:
            raise UsageError(
                f"first, num: expected questions below {SEED_STRIDE}, which no other stage asks, "
                f"got {self.first} to {self.first + self.num}"
            )
        self.rules  # noqa: B018
        self.world_config  # noqa: B018

    @property
    def world_config(self) -> WorldConfig:
        """The world of LookWorld's questions."""
        return world_of_text(self.world)

    @property
    def rules(self) -> Rules:
        """How votes decide."""
        on_reject: Literal["correct", "drop"] = "correct" if self.on_reject == "correct" else "drop"
        if self.on_reject != on_reject:
            raise UsageError(f"on_reject: expected correct or drop, got {self.on_reject!r}")
        veto = tuple(filter(None, self.veto.split(",")))
        return Rules(quorum=self.quorum, veto=veto, on_reject=on_reject)


class Questions:
    """The questions of a run, in order. `position`: of the next; `skipped`: rows left out."""

    def __init__(self, config: DistillConfig, reader: ExampleReader | None, position: int) -> None:
        self._reader = reader
        self._position = position
        self._examples: Iterator[Example] = reader or self._world(config)

    @property
    def position(self) -> int:
        return self._reader.position if self._reader else self._position

    @property
    def skipped(self) -> Counter[str]:
        return self._reader.skipped if self._reader else Counter()

    def take(self, num: int) -> list[Example]:
        """The next `num` questions, fewer at the end."""
        return list(islice(self._examples, num))

    def _world(self, config: DistillConfig) -> Iterator[Example]:
        world = config.world_config
        while True:
            index = config.first + self._position
            self._position += 1
            family = FAMILIES[index % len(FAMILIES)]
            yield lookworld_example(
                LookWorldRef(split=config.split, index=index, family=family, world=world)
            )


Ask = Callable[[Sequence[Example], int], list[Result | str]]


def decide(
    example: Example, answer: Result | str, verifiers: Sequence[Verifier], rules: Rules, home: Path
) -> dict[str, Any]:
    """One line of the journal: what became of a question. `row` is what goes to the output."""
    family = example.id.rsplit("/", 1)[-1] if example.lookworld is not None else "data"
    if isinstance(answer, str):
        return {"family": family, "status": "dropped", "reason": answer}
    text = answer.text.strip()
    if example.lookworld is None:  # the judges of LookWorld's objects have nothing to say
        rules = replace(rules, veto=(*rules.veto, "conclusion"))
    decision = judge(verifiers, text, example, rules)
    entry: dict[str, Any] = {
        "family": family,
        "status": decision.status,
        "objections": [list(pair) for pair in decision.objections],
        "tokens": len(answer.tokens),
        "reflections": len(parse_tags(text).of("REFLECTION")),
    }
    if decision.text is None:
        return entry | {"reason": decision.reason}
    row = to_row(example, home, decision.text)
    return entry | {"row": row | ({"corrected_from": text} if decision.text != text else {})}


def distill(
    config: DistillConfig,
    ask: Ask,
    output: Path,
    *,
    verifiers: Sequence[Verifier],
    reader: Callable[[int], ExampleReader] | None = None,
    model: str = "",
) -> dict[str, Any]:
    """The summary of a run; writes `output` and the summary beside it, each whole or not at all.

    Raises MachineError E_OUTPUT_EXISTS where the file is of something else.

    `reader(position)` reads the questions of a file from there on; without it they are
    LookWorld's. `model` names what answers: a run that was begun with another does not go on.
    """
    home = output.resolve().parent
    header = {**asdict(config), "model": model, "verifiers": [v.name for v in verifiers]}
    if reader is not None:
        rows = reader(0)
        rows.refuse_empty()
        header["data"] = rows.fingerprint
    done = _finished(output, header)
    if done is not None:
        return done
    journal_path = output.with_name(output.name + JOURNAL_SUFFIX)
    if output.exists() and not journal_path.exists():
        raise MachineError(
            f"{output}: exists already, from other settings or another program\n"
            "choose another --output, or delete it",
            name="E_OUTPUT_EXISTS",
        )
    with Journal(journal_path, header) as journal:
        start: dict[str, Any] = {"position": 0, "asked": 0, "skipped": {}}
        last = journal.entries[-1] if journal.entries else start
        before: Counter[str] = Counter(last["skipped"])
        at = int(last["position"])
        questions = Questions(config, reader(at) if reader else None, at)
        asked, kept = int(last["asked"]), _kept(journal)
        with RunLog(home, output.stem + ".metrics", total=config.num, done=asked) as log:
            while asked < config.num:
                started = time.monotonic()
                examples = questions.take(min(config.batch, config.num - asked))
                if not examples:
                    break
                answers = ask(examples, asked)
                made = [
                    decide(example, answer, verifiers, config.rules, home)
                    for example, answer in zip(examples, answers, strict=True)
                ]
                asked += len(made)
                kept += sum("row" in entry for entry in made)
                journal.append(
                    {
                        "position": questions.position,
                        "asked": asked,
                        "skipped": dict(before + questions.skipped),
                        "seconds": round(time.monotonic() - started, 3),
                        "answers": made,
                    }
                )
                log.advance(asked, f"kept {kept / asked:.0%}")
        return _finish(journal, output, header, before + questions.skipped)


def _finished(output: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the same run where it has ended before."""
    summary = output.with_name(output.name + SUMMARY_SUFFIX)
    if not (output.is_file() and summary.is_file()):
        return None
    try:
        value = json.loads(summary.read_bytes())
    except ValueError:
        return None
    same = isinstance(value, dict) and value.get("config") == json.loads(json.dumps(header))
    return value if same else None


def _kept(journal: Journal) -> int:
    return sum("row" in answer for entry in journal.entries for answer in entry["answers"])


def _finish(
    journal: Journal, output: Path, header: dict[str, Any], skipped: Counter[str]
) -> dict[str, Any]:
    answers = [answer for entry in journal.entries for answer in entry["answers"]]
    seconds = sum(entry["seconds"] for entry in journal.entries)
    summary = summarise(answers, skipped) | {"seconds": round(seconds, 1), "config": header}
    with atomic_file(output) as file:
        for answer in answers:
            if "row" in answer:
                file.write(json.dumps(answer["row"], ensure_ascii=False).encode() + b"\n")
    with atomic_file(output.with_name(output.name + SUMMARY_SUFFIX)) as file:
        file.write(json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
    journal.remove()
    return summary


def summarise(answers: Sequence[dict[str, Any]], skipped: Counter[str]) -> dict[str, Any]:
    """Every count of a run: nothing is dropped that does not stand here."""
    status = Counter(answer["status"] for answer in answers)
    judged = [answer for answer in answers if "objections" in answer]
    families: dict[str, Counter[str]] = {}
    for answer in answers:
        families.setdefault(answer["family"], Counter())[answer["status"]] += 1
    objections = Counter(f"{n}: {r}" for answer in judged for n, r in answer["objections"])
    num = len(answers)
    return {
        "asked": num,
        "kept": status["kept"],
        "corrected": status["corrected"],
        "dropped": status["dropped"],
        "kept_frac": (status["kept"] + status["corrected"]) / num if num else 0.0,
        "dropped_for": _sorted(Counter(a["reason"] for a in answers if a["status"] == "dropped")),
        "objections": _sorted(objections),
        "rows_skipped": _sorted(skipped),
        "families": {name: _sorted(counts) for name, counts in sorted(families.items())},
        "tokens_mean": sum(a["tokens"] for a in judged) / len(judged) if judged else 0.0,
        "reflections_mean": sum(a["reflections"] for a in judged) / len(judged) if judged else 0.0,
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@click.command()
@config_options(DistillConfig)
@model_options
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSONL to write")
@click.option("--data", type=click.Path(path_type=Path), help="JSONL of questions")
@click.option("--images", type=click.Path(path_type=Path), help="where the data's images are")
@click.option("--verifier", "named", multiple=True, help="one more judge, module:function")
def main(
    ckpt: Path | None,
    engine: Path | None,
    threads: int | None,
    output: Path,
    data: Path | None,
    images: Path | None,
    named: tuple[str, ...],
    **values: Any,
) -> None:
    """Let a model answer questions, and keep what the judges let pass."""
    config = DistillConfig(**values)
    rules = (*lookworld_verifiers(config.reasoning_length),)
    more = tuple(CallableVerifier(spec, load_callable(spec)) for spec in named)
    names = [verifier.name for verifier in (*rules, *more)]
    if unknown := set(config.rules.veto) - set(names):
        raise UsageError(
            f"veto: no judge {', '.join(sorted(unknown))}\nexpected of {', '.join(names)}"
        )
    click.echo(json.dumps(asdict(config)), err=True)
    options = make_options(
        policy=config.policy, temperature=config.temperature, max_tokens=config.max_tokens
    )
    model = open_model(ckpt, engine, threads, config.batch)
    summary = distill(
        config,
        Asker(session=model.session, processor=model.processor, options=options, seed=config.seed),
        output,
        verifiers=(*rules, *more),
        reader=None
        if data is None
        else lambda position: ExampleReader(data, images, seed=config.seed, start=position),
        model=digest([ckpt or engine or ""]),
    )
    click.echo(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(run(main))
