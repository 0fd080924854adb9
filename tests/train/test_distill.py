"""Distillation: what is kept and counted, going on after a kill, asking through a session."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from la_trt.errors import InputError, MachineError, UsageError
from la_trt.events import Result, Timing, Usage
from la_trt.lookworld import is_correct
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import preset
from la_trt.sampling import SamplingParams
from la_trt.session import Session
from la_trt.tags import conclusion
from tests.session.mock_engine import ByteTokens, MockEngine, ids_of, make_prompt
from tests.session.test_session import by_question
from train.asker import Asker
from train.command import run
from train.data import Example, ExampleReader, read_examples
from train.distill import DistillConfig, distill, main
from train.inputs import digest
from train.journal import Journal
from train.lookworld_rules import lookworld_verifiers
from train.verifiers import FormatVerifier, replace_section

SMALL = '{"sizes": [[168, 168]], "error_rate": 0.0}'
CONFIG = DistillConfig(num=23, batch=4, world=SMALL)
VERIFIERS = lookworld_verifiers()


def result(text: str) -> Result:
    zero = Timing(**dict.fromkeys(Timing.__slots__, 0.0))
    usage = Usage(**dict.fromkeys(Usage.__slots__, 1))
    return Result(
        text=text,
        conclusion=conclusion(text),
        finish_reason="stop",
        tokens=ids_of(text),
        engine="mock",
        policy="text",
        reinjections=[],
        usage=usage,
        timing=zero,
    )


class Answers:
    """Right answers; wrong (2 of 5), malformed and cut off ones by the question's number."""

    def __init__(self, fail_at: int = -1) -> None:
        self.asked: list[int] = []
        self.fail_at = fail_at

    def __call__(self, examples: Sequence[Example], first: int) -> list[Result | str]:
        made: list[Result | str] = []
        for number, example in enumerate(examples, first):
            if number >= self.fail_at >= 0:
                raise KeyboardInterrupt
            self.asked.append(number)
            made.append(self._answer(number, example))
        return made

    def _answer(self, number: int, example: Example) -> Result | str:
        assert example.lookworld is not None
        text = example.lookworld.sample().response.text
        if number % 5 == 1:
            return result(replace_section(text, "CONCLUSION", "wrong") or "")
        if number % 5 == 2:
            return result(text.replace("</CAPTION>", ""))
        return "cut off" if number % 5 == 3 else result(text)


def go(output: Path, ask: Any = None, config: DistillConfig = CONFIG, **options: Any) -> Any:
    return distill(config, ask or Answers(), output, verifiers=VERIFIERS, **options)


def test_what_is_kept_corrected_and_dropped(tmp_path: Path) -> None:
    summary = go(tmp_path / "out.jsonl")
    numbers = Counter(n % 5 for n in range(CONFIG.num))
    kept = numbers[0] + numbers[4]
    assert summary["asked"] == CONFIG.num
    assert (summary["kept"], summary["corrected"]) == (kept, numbers[1])
    assert summary["dropped"] == numbers[2] + numbers[3]
    assert summary["kept_frac"] == (kept + numbers[1]) / CONFIG.num
    assert summary["dropped_for"]["cut off"] == numbers[3]
    assert sum(summary["dropped_for"].values()) == summary["dropped"]
    assert summary["objections"]["conclusion: wrong answer"] == numbers[1]
    assert sum(sum(f.values()) for f in summary["families"].values()) == CONFIG.num
    assert summary["reflections_mean"] == 1.0 and summary["tokens_mean"] > 50
    saved = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert saved == summary
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.summary.json",
        "out.metrics.jsonl",
    ]
    reader = read_examples(tmp_path / "out.jsonl", require=("response", "answer"))
    examples = list(reader)
    assert len(examples) == kept + numbers[1] and not reader.skipped
    for example in examples:
        assert example.lookworld is not None and example.response is not None
        drawn = example.lookworld.sample()
        assert is_correct(drawn.question, conclusion(example.response), drawn.scene)
        assert example.lookworld.world == CONFIG.world_config
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    given = [row["corrected_from"] for row in rows if "corrected_from" in row]
    assert len(given) == numbers[1]
    assert all("<CONCLUSION>wrong</CONCLUSION>" in text for text in given)


def test_dropping_instead_of_correcting(tmp_path: Path) -> None:
    config = replace(CONFIG, on_reject="drop")
    summary = go(tmp_path / "out.jsonl", config=config)
    assert summary["corrected"] == 0
    assert summary["dropped_for"]["reasoning + conclusion"] == 5


def same(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.mark.parametrize("fail_at", [0, 1, 4, 9, 22])
def test_goes_on_after_an_interruption(tmp_path: Path, fail_at: int) -> None:
    whole = go(tmp_path / "whole.jsonl")
    output = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(output, Answers(fail_at))
    assert not output.exists() and (tmp_path / "cut.jsonl.part").exists()
    rest = Answers()
    assert same(go(output, rest)) == same(whole)
    assert rest.asked[0] == fail_at // CONFIG.batch * CONFIG.batch
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "cut.jsonl.part").exists()


def test_goes_on_from_a_journal_cut_anywhere(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut.jsonl", Answers(12))
    journal = (tmp_path / "cut.jsonl.part").read_bytes()
    ends = [i for i, byte in enumerate(journal) if byte == 10]
    assert len(ends) == 4
    around = [end + d for end in ends for d in (-1, 0, 1) if end + d <= len(journal)]
    for size in {0, 1, 19, 111, len(journal) - 30, *around}:
        output = tmp_path / f"at{size}.jsonl"
        Path(f"{output}.part").write_bytes(journal[:size])
        assert same(go(output)) == same(whole)
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = go(output)
    again = Answers()
    assert go(output, again) == first and again.asked == []
    other, before = Answers(), output.read_bytes()
    with pytest.raises(MachineError, match="exists already") as caught:
        go(output, other, replace(CONFIG, seed=1))
    assert caught.value.name == "E_OUTPUT_EXISTS"
    assert other.asked == [] and output.read_bytes() == before
    output.unlink()
    assert same(go(output)) == same(first)


def test_other_settings_and_other_processes_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(output, Answers(9))
    with pytest.raises(UsageError, match="max_tokens was 448") as caught:
        go(output, config=replace(CONFIG, max_tokens=9))
    assert caught.value.name == "E_OTHER_RUN"
    with pytest.raises(UsageError, match="model was"):
        go(output, model="another")
    with (
        Journal(tmp_path / "held.jsonl.part", {}),
        pytest.raises(MachineError, match="another process"),
    ):
        go(tmp_path / "held.jsonl")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 56), (9, 9, 200)).save(tmp_path / "a.png")
    rows = [
        json.dumps({"image": "a.png", "question": f"[{k}]", "answer": str(k), "id": k})
        for k in range(19)
    ]
    rows[3] = "{"
    rows[7] = json.dumps({"image": "none.png", "question": "[7]"})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(rows))
    return path


def plain_answer(example: Example) -> Result:
    return result(
        "<SUMMARY>s</SUMMARY><CAPTION>c</CAPTION><REASONING>r</REASONING>"
        f"<REFLECTION></REFLECTION><CONCLUSION>{example.answer}</CONCLUSION>"
    )


def test_questions_of_a_file(tmp_path: Path, data: Path) -> None:
    def reader(position: int) -> ExampleReader:
        return ExampleReader(data, seed=2, start=position)

    def ask(limit: int) -> Callable[[Sequence[Example], int], list[Result | str]]:
        def answer(examples: Sequence[Example], first: int) -> list[Result | str]:
            if first + len(examples) > limit:
                raise KeyboardInterrupt
            return [plain_answer(e) for e in examples]

        return answer

    output = tmp_path / "deep" / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(output, ask(9), reader=reader)
    summary = go(output, ask(99), reader=reader)
    assert (summary["asked"], summary["kept"]) == (17, 17)
    assert summary["rows_skipped"] == {"broken JSON": 1, "missing image": 1}
    assert summary["families"] == {"data": {"kept": 17}}
    examples = list(read_examples(output))
    assert sorted(int(e.id) for e in examples) == [k for k in range(19) if k not in (3, 7)]
    assert examples[0].images[0].resolve() == (tmp_path / "a.png").resolve()  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "other.jsonl", ask(9), reader=reader)
    data.write_text(data.read_text() + "\n")
    with pytest.raises(UsageError, match="data was"):
        go(tmp_path / "other.jsonl", ask(9), reader=reader)


def test_a_wrong_conclusion_is_enough_in_ones_own_data(tmp_path: Path, data: Path) -> None:
    """The quorum is of judges that know a scene of LookWorld; here one alone can object."""

    def ask(examples: Sequence[Example], first: int) -> list[Result | str]:
        return [plain_answer(replace(e, answer=f"not {e.answer}")) for e in examples]

    summary = go(tmp_path / "out.jsonl", ask, reader=lambda at: ExampleReader(data, start=at))
    assert (summary["asked"], summary["kept"]) == (17, 0)
    assert list(summary["objections"]) == ["conclusion: wrong answer"]


def mock_asker(scripts: dict[str, str], **options: Any) -> Asker:
    engine = MockEngine(by_question({q: ids_of(t) for q, t in scripts.items()}), max_len=200)  # type: ignore[arg-type]

    def processor(question: str, images: Sequence[Any]) -> Any:
        if question == "[refused]":
            raise InputError("image: no", name="E_IMAGE_DECODE")
        return make_prompt(question)

    made = GenerationOptions(policy=preset("text"), max_tokens=60, **options)
    return Asker(session=Session(engine, ByteTokens()), processor=processor, options=made, seed=3)


def asked(question: str) -> Example:
    return Example(images=(), question=question, response=None, answer=None, id=question)


def test_asking_through_a_session() -> None:
    texts = {
        "[a]": "<REFLECTION>r</REFLECTION><CONCLUSION>3</CONCLUSION>",
        "[b]": "<CONCLUSION>4</CONCLUSION>",
        "[long]": "x" * 80,
        "[" + "y" * 150 + "]": "z",
    }
    ask = mock_asker(texts)
    answers = ask([asked(q) for q in (*texts, "[refused]")], 0)
    first, second = answers[:2]
    assert isinstance(first, Result) and isinstance(second, Result)
    assert (first.text, second.text) == (texts["[a]"], texts["[b]"])
    assert answers[2:] == ["cut off", "prompt too long", "refused E_IMAGE_DECODE"]
    assert ask([asked("[refused]")], 0) == ["refused E_IMAGE_DECODE"]


def test_an_answer_does_not_depend_on_its_batch() -> None:
    def flat(entries: list[Any]) -> np.ndarray:
        return np.where(np.arange(300) < 100, 0.0, -50.0).astype(np.float32)

    def drawn(cuts: list[int]) -> list[list[int]]:
        ask = mock_asker({}, sampling=SamplingParams(temperature=1.0), ignore_eos=True)
        ask.session.engine.script = flat  # type: ignore[attr-defined]
        cut = replace(ask, options=replace(ask.options, stop_token_ids=(5,)))
        examples = [asked(f"[{k}]") for k in range(6)]
        results = [
            r
            for start, end in zip([0, *cuts], [*cuts, 6], strict=True)
            for r in cut(examples[start:end], start)
        ]
        return [r.tokens if isinstance(r, Result) else [] for r in results]

    whole = drawn([])
    assert whole == drawn([1, 3]) == drawn([5])
    assert len({tuple(tokens) for tokens in whole if tokens}) == sum(map(bool, whole)) >= 2


def test_config_is_checked() -> None:
    for fields, message in (
        ({"num": 0}, "num"),
        ({"split": "test"}, "split"),
        ({"first": -1}, "first"),
        ({"first": 999_990, "num": 20}, "first"),
        ({"world": "{"}, "world"),
        ({"world": '{"clutter": 3}'}, "clutter"),
        ({"world": '{"colour": 3}'}, "world"),
        ({"on_reject": "keep"}, "on_reject"),
        ({"quorum": 0}, "quorum"),
    ):
        with pytest.raises(UsageError, match=message):
            DistillConfig(**fields)  # type: ignore[arg-type]
    assert DistillConfig(world=SMALL).world_config.sizes == ((168, 168),)


def test_command(
    tmp_path: Path, data: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "zero.jsonl"
    arguments = [
        *("--ckpt", str(tiny_checkpoint), "--data", str(data), "--output", str(output)),
        *("--num", "5", "--batch", "2", "--max-tokens", "8"),
    ]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    summary = json.loads((tmp_path / "zero.jsonl.summary.json").read_text())
    assert summary["asked"] == summary["dropped"] == 5
    assert summary["config"]["model"] == digest([tiny_checkpoint])
    assert output.read_text() == ""
    assert run(main, [*arguments, "--engine", "x"]) == 2
    assert run(main, [*arguments, "--num", "many"]) == 2
    assert run(main, ["--ckpt", str(tmp_path / "none"), "--output", str(output)]) != 0
    assert "error[" in capsys.readouterr().err


def test_digest_is_of_the_contents(tmp_path: Path) -> None:
    for name, texts in (("a", ("1", "2")), ("b", ("1", "2")), ("c", ("12", "")), ("d", ("2", "1"))):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "x").write_text(texts[0])
        (tmp_path / name / "deep" / "y").write_text(texts[1])
    a, b, c, d = (digest([tmp_path / name]) for name in "abcd")
    assert a == b and len({a, c, d}) == 3
    with pytest.raises(InputError, match="no such file"):
        digest([tmp_path / "none"])


def test_format_alone_rejects_by_default() -> None:
    assert CONFIG.rules.veto == (FormatVerifier().name,)
    assert DistillConfig(veto="").rules.veto == ()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--veto", "formatt"], 2, "veto: no judge formatt\nexpected of format, caption"),
        (["--seed", "-1"], 2, "seed: expected"),
        (["--max-tokens", "99999999"], 2, "max_tokens: expected fewer than"),
        (["--verifier", "math:sqrt"], 3, "error[E_VERIFIER]: verifier 'math:sqrt': TypeError"),
    ],
)
def test_what_would_judge_otherwise_than_asked_is_refused(
    flags: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    data: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answered(self: Asker, examples: Sequence[Example], first: int) -> list[Result | str]:
        return [result("<SUMMARY>s</SUMMARY>") for _ in examples]

    monkeypatch.setattr(Asker, "__call__", answered)
    arguments = ["--ckpt", str(tiny_checkpoint), "--data", str(data)]
    output = tmp_path / "zero.jsonl"
    assert run(main, [*arguments, "--output", str(output), "--num", "1", *flags]) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not output.exists()


def test_a_file_without_rows_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    output = tmp_path / "zero.jsonl"
    arguments = ["--ckpt", str(tiny_checkpoint), "--data", str(tmp_path / "empty.jsonl")]
    assert run(main, [*arguments, "--output", str(output)]) == 3
    assert "error[E_DATA]" in capsys.readouterr().err and not output.exists()
