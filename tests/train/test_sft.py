"""SFT with copies: what it learns from, what stays as it is, and what a run leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from la_trt.engines.torch import TorchEngine
from la_trt.errors import CheckpointError, InputError, MachineError, UsageError
from la_trt.events import TokenEvent
from la_trt.lookworld import WorldConfig
from la_trt.model.weights import load_model
from la_trt.processor.prompt import Processor
from la_trt.reattention.policy import Policy
from la_trt.session import GenerationOptions, Session
from la_trt.tags import ALL_TAGS
from tests.tiny import write_tiny_checkpoint
from train.batch import collate
from train.checkpointing import fingerprint
from train.command import run
from train.learner import Learner
from train.presets_sft import PRESETS, DataConfig, LookConfig, RunConfig, SftConfig
from train.reinject import build_sequences
from train.sft import Trainer, main, read_world, sft
from train.trainee import OptimConfig
from train.turns import FileTurns, LookWorldTurns, turn_length

FAMILIES = (0, 1, 1, 0, 0, 0, 0, 0, 0, 1)  # those that so small a world can ask about
WORLD = WorldConfig(sizes=((84, 84),), max_objects=2, reasoning_length=0, family_weights=FAMILIES)
EXACT = OptimConfig(lr=1e-3, dtype="float32")


def make(
    ckpt: Path, output: Path, look: LookConfig | None = None, data: Path | None = None, **optim
) -> Trainer:
    config = SftConfig(
        run=RunConfig(steps=3, save_every=2, tensorboard="off"),
        look=look or LookConfig(),
        data=DataConfig(global_batch=4, micro_batch=2, max_length=2000),
        optim=replace(EXACT, **optim),
    )
    return Trainer(config, ckpt, output, data=data, world=WORLD)


def whole(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.trainee.model_state().items()}


def test_presets_are_the_papers() -> None:
    paper = PRESETS["paper-7b"]
    assert (paper.data.global_batch, paper.data.micro_batch) == (1 * 8 * 8, 1)
    assert (paper.optim.lr, paper.optim.warmup_frac, paper.run.epochs) == (1e-5, 0.01, 13)
    assert (paper.optim.beta1, paper.optim.beta2, paper.optim.eps) == (0.9, 0.999, 1e-8)
    assert paper.data.max_pixels == 262_144 and paper.optim.dtype == "bfloat16"
    assert paper.optim.only_tag_rows and not paper.optim.train_vision


LOOKS = [
    LookConfig(reattention="none"),
    LookConfig(reattention="copy", inject="embed"),
    LookConfig(reattention="copy", inject="kv"),
    LookConfig(reattention="route", inject="embed", route_percent=25),
    LookConfig(reattention="route", inject="kv", route_percent=75),
]


@pytest.mark.parametrize("look", LOOKS, ids=lambda c: f"{c.reattention}-{c.inject}")
def test_the_loss_is_the_engines(tiny_checkpoint: Path, tmp_path: Path, look: LookConfig) -> None:
    """Minus the mean of the session's log-probabilities of all learned tokens of the batch."""
    trainer = make(tiny_checkpoint, tmp_path / "a", look)
    metrics = trainer.train_step()
    again = make(tiny_checkpoint, tmp_path / "b", look)
    turns = [again.turns.take() for _ in range(4)]
    engine = TorchEngine.from_pretrained(tiny_checkpoint, max_batch=4, max_len=4000)
    session = Session(engine, trainer.processor.vocabulary, eos_token_ids=[])
    found, injected = [], 0
    for turn in turns:
        forced = tuple(turn.response_ids.tolist())
        options = GenerationOptions(policy=look.policy, forced=forced, max_tokens=len(forced))
        events = list(session.stream(turn.prompt, options))
        values = np.array([e.logprob for e in events if isinstance(e, TokenEvent)])
        assert turn.learn is not None
        found.append(values[turn.learn])
        injected += events[-1].result.usage.reinjected_tokens
    assert metrics["loss"] == pytest.approx(-np.concatenate(found).mean(), abs=1e-4)
    assert metrics["injected_tokens"] == injected / 4
    assert (injected > 0) == (look.reattention != "none")


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_frozen_stays_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt", tie_word_embeddings=tied)
    trainer = make(ckpt, tmp_path / "out", weight_decay=0.1)
    before = whole(trainer)
    for _ in range(2):
        trainer.train_step()
    after = whole(trainer)
    tags = [trainer.processor.vocabulary.controls[t] for t in ALL_TAGS]
    others = np.setdiff1d(np.arange(len(before["model.embed_tokens.weight"])), tags)
    for name, old in before.items():
        new = after[name]
        if name.startswith("visual."):
            assert torch.equal(new, old), name
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(new[others], old[others]), name
            assert (new[tags] != old[tags]).any(1).sum() >= 9, name
        else:
            assert not torch.equal(new, old), name
    assert ("lm_head.weight" in before) != tied


def test_everything_is_trained_where_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make(tiny_checkpoint, tmp_path, train_vision=True, only_tag_rows=False)
    before = whole(trainer)
    trainer.train_step()
    after = whole(trainer)
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_a_step_is_plain_adamw_on_the_mean_loss(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Sharding, passes of two, masters, clipping: the same weights as twelve lines of PyTorch."""
    trainer = make(tiny_checkpoint, tmp_path / "a", only_tag_rows=False, recompute=True)
    twin = make(tiny_checkpoint, tmp_path / "b", only_tag_rows=False)
    plain = Learner(load_model(tiny_checkpoint))
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        trainer.train_step()
        turns = [twin.turns.take() for _ in range(4)]
        batch = collate(
            build_sequences(
                turns,
                trainer.policy,
                reflection_id=trainer.reflection_id,
                config=trainer.model_config,
            )
        )
        loss = -plain.log_probs(batch, plain.see(batch)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found = whole(trainer)
    for name, expected in plain.vlm.state_dict().items():
        torch.testing.assert_close(found[name], expected, atol=2e-5, rtol=0)


def test_bfloat16_keeps_float32_masters(tiny_checkpoint: Path, tmp_path: Path) -> None:
    look = LookConfig(reattention="route")
    exact = make(tiny_checkpoint, tmp_path / "a", look)
    rough = make(tiny_checkpoint, tmp_path / "b", look, dtype="bfloat16", lr=1e-5)
    before = whole(rough)
    losses = [t.train_step()["loss"] for t in (exact, rough)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]
    after = whole(rough)
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    moved = (after[name] - before[name]).abs()
    assert 0 < float(moved.max()) < 2e-5  # below what bfloat16 could hold
    assert (moved > 0).float().mean() > 0.9


def test_twelve_steps_learn_four_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = SftConfig(
        run=RunConfig(steps=12, tensorboard="off"),
        look=LookConfig(reattention="route", inject="kv"),
        data=DataConfig(global_batch=4, micro_batch=4, max_length=2000),
        optim=replace(EXACT, lr=1e-2, only_tag_rows=False),
    )
    data = _rows(tmp_path, [3, 0, 1, 2])
    trainer = Trainer(config, tiny_checkpoint, tmp_path / "out", data=data)
    losses = [trainer.train_step()["loss"] for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def _rows(directory: Path, reflections: list[int]) -> Path:
    """A data file of one picture and answers with so many reflections."""
    Image.new("RGB", (90, 70), "green").save(directory / "picture.png")
    lines = [
        json.dumps(
            {
                "image": "picture.png",
                "question": f"How many? {i}",
                "response": "<CAPTION>a</CAPTION>"
                + f"<REFLECTION>b{i}</REFLECTION>" * num
                + f"<CONCLUSION>{i}</CONCLUSION>",
            }
        )
        for i, num in enumerate(reflections)
    ]
    path = directory / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_that_do_not_fit_are_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Length is counted with the copies, as the policy makes them."""
    data, processor = _rows(tmp_path, [0, 1, 6, 1]), Processor.from_pretrained(tiny_checkpoint)
    copy, none = LookConfig().policy, LookConfig(reattention="none").policy
    tag = processor.vocabulary.controls["<REFLECTION>"]

    def turns(policy: Policy, max_length: int) -> FileTurns:
        return FileTurns(processor, data, None, seed=0, policy=policy, max_length=max_length)

    every = turns(copy, 4000)
    longest = max((every.take() for _ in range(4)), key=lambda t: len(t.response_ids))
    limit = turn_length(longest, none, tag)
    assert turn_length(longest, copy, tag) == limit + 6 * longest.prompt.num_visual
    # Seven of three good rows: the fourth has been passed at least twice.
    for policy, at_least in ((copy, 2), (none, 0)):
        found = turns(policy, limit)
        lengths = [turn_length(found.take(), policy, tag) for _ in range(7)]
        assert max(lengths) <= limit
        assert found.skipped.total() == found.position - 7 >= at_least
    with pytest.raises(InputError, match="no row fits 30 tokens"):
        turns(none, 30).take()


def test_responses_of_lookworld_that_do_not_fit_are_counted(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, copy = Processor.from_pretrained(tiny_checkpoint), LookConfig().policy
    world = replace(WORLD, reasoning_length=3, error_rate=0.5)
    tag = processor.vocabulary.controls["<REFLECTION>"]

    def turns(max_length: int) -> LookWorldTurns:
        return LookWorldTurns(processor, seed=0, world=world, policy=copy, max_length=max_length)

    every = turns(10**6)
    lengths = [turn_length(every.take(), copy, tag) for _ in range(12)]
    limit = sorted(lengths)[5]
    found, fitting = turns(limit), [length for length in lengths if length <= limit]
    assert [turn_length(found.take(), copy, tag) for _ in fitting] == fitting
    assert found.skipped == {"E_CONTEXT_LENGTH": found.position - len(fitting)}
    monkeypatch.setattr("train.turns._MOST_TOO_LONG", 9)
    with pytest.raises(InputError, match="lookworld: none of 9 responses fits 30 tokens"):
        turns(30).take()


def test_epochs_count_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = SftConfig(
        run=RunConfig(epochs=3, tensorboard="off"),
        data=DataConfig(global_batch=2, micro_batch=1, max_length=4000),
        optim=EXACT,
    )
    data = _rows(tmp_path, [0, 1, 2, 1])
    trainer = Trainer(config, tiny_checkpoint, tmp_path / "out", data=data)
    assert trainer.num_steps == 3 * 4 // 2
    asked = [trainer.turns.take().prompt.text for _ in range(12)]
    assert all(len(set(asked[i : i + 4])) == 4 for i in (0, 4, 8)) and asked[:4] != asked[4:8]


def test_a_run_leaves_a_checkpoint_and_its_story(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    families = f"family_weights={list(FAMILIES)}"
    world = ["sizes=[[84,84]]", "max_objects=2", "reasoning_length=0", families]
    arguments = [
        *("--ckpt", str(tiny_checkpoint), "--output", str(output), "--steps", "2"),
        *("--reattention", "route", "--inject", "kv", "--route-percent", "25"),
        *("--global-batch", "2", "--micro-batch", "1", "--dtype", "float32"),
        *(part for value in world for part in ("--world", value)),
    ]
    assert run(main, arguments) == 0
    assert capsys.readouterr().out == f"{output / 'checkpoint'}\n"
    lines = [json.loads(line) for line in (output / "sft.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and lines[0]["tok_s"] > 0
    saved = json.loads((output / "sft_config.json").read_text())
    assert saved["look"]["route_percent"] == 25 and saved["world"]["reasoning_length"] == 0
    model = load_model(output / "checkpoint")
    assert model.config == load_model(tiny_checkpoint).config
    Processor.from_pretrained(output / "checkpoint")
    longer = [
        a if a != "2" or arguments[i - 1] != "--steps" else "3" for i, a in enumerate(arguments)
    ]
    assert run(main, longer) == 0
    steps = [json.loads(line)["step"] for line in (output / "sft.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    said = (output / "sft_config.json").read_bytes()
    assert run(main, [*longer, "--lr", "0.5"]) == 2
    assert "was begun with lr 0.0003, now 0.5\n" in capsys.readouterr().err
    assert run(main, arguments) == 2
    assert "steps: 3 are done already, 2 asked for\n" in capsys.readouterr().err
    assert (output / "sft_config.json").read_bytes() == said


def test_ctrl_c_says_where_the_run_goes_on(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.train_step

    def until(last: int) -> Callable[[Trainer], dict[str, float]]:
        def stopped(self: Trainer) -> dict[str, float]:
            if self.step == last:
                raise KeyboardInterrupt
            return step(self)

        return stopped

    arguments = [
        *("--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--steps", "9"),
        *("--world", "sizes=[[84,84]]", "--world", f"family_weights={list(FAMILIES)}"),
        *("--global-batch", "1", "--micro-batch", "1", "--dtype", "float32"),
        *("--world", "max_objects=2", "--save-every", "2"),
    ]
    for last, then in ((1, "begins anew, nothing was saved"), (3, "goes on from step 2")):
        monkeypatch.setattr(Trainer, "train_step", until(last))
        assert run(main, arguments, goes_on="its last save") == 130
        said = f"interrupted: the same command {then} (--save-every)\n"
        assert capsys.readouterr().err.endswith(said)


def test_only_the_first_process_speaks(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.sft.join", lambda: (1, 2))
    monkeypatch.setattr("train.sft.sft", lambda trainer: tmp_path)
    assert run(main, ["--ckpt", str(tiny_checkpoint), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_checkpoint_without_tags_gets_them(tmp_path: Path) -> None:
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt", tags=(), vocab_size=400)
    # What newer libraries look at first, where a released checkpoint has it.
    listed = {"added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}}}
    (ckpt / "tokenizer_config.json").write_text(json.dumps(listed))
    trainer = make(ckpt, tmp_path / "out")
    controls = trainer.processor.vocabulary.controls
    before = load_model(ckpt).model.embed_tokens.weight
    row = controls["<REFLECTION>"]
    spelt = Processor.from_pretrained(ckpt).vocabulary.encode("<REFLECTION>")
    start = whole(trainer)["model.embed_tokens.weight"]
    torch.testing.assert_close(start[row], before[spelt].mean(0))
    assert trainer.train_step()["injected_tokens"] > 0
    directory = sft(trainer)
    assert Processor.from_pretrained(directory).vocabulary.controls == controls
    decoder = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder.pop("5") == listed["added_tokens_decoder"]["5"]
    assert {int(i): entry["content"] for i, entry in decoder.items()} == {
        controls[tag]: tag for tag in ALL_TAGS
    }
    full = write_tiny_checkpoint(tmp_path / "full", tags=())
    with pytest.raises(CheckpointError, match="rows"):
        make(full, tmp_path / "no")


def test_a_board_that_is_not_installed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = make(tiny_checkpoint, tmp_path)
    run = replace(trainer.config.run, tensorboard="on")
    trainer.config = replace(trainer.config, run=run)
    with pytest.raises(MachineError, match="tensorboard: the package is not installed"):
        sft(trainer)
    assert trainer.step == 0


def test_settings_that_cannot_be(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="global_batch"):
        DataConfig(global_batch=7, micro_batch=2)
    endless = Trainer(SftConfig(optim=EXACT), tiny_checkpoint, tmp_path)
    with pytest.raises(UsageError, match="steps"):
        _ = endless.num_steps
    with pytest.raises(UsageError, match="world"):
        read_world(["max_objects"])
    with pytest.raises(UsageError, match=r"no dial 'foo'\nexpected one of .*clutter"):
        read_world(["foo=1"])
    assert read_world(['{"clutter": 0.5}', "max_objects=2"]) == read_world(
        ["clutter=0.5", "max_objects=2"]
    )
    with pytest.raises(UsageError, match="world"):
        read_world(["unknown=1"])


def test_another_checkpoint_does_not_go_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make(tiny_checkpoint, tmp_path / "out")
    trainer.train_step()
    trainer.save()
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    larger = write_tiny_checkpoint(tmp_path / "larger", vocab_size=400)
    for ckpt in (other, larger):
        with pytest.raises(UsageError, match=r"begun with --ckpt \w+, now \w+\n") as caught:
            make(ckpt, tmp_path / "out")
        assert caught.value.name == "E_STATE"
    state = torch.load(trainer.path, weights_only=True)
    del state["origin"]["start"]  # as older versions wrote it
    torch.save(state, trainer.path)
    assert make(tiny_checkpoint, tmp_path / "out").step == 1


def test_the_start_is_known_again_by_any_number_of_threads() -> None:
    torch.manual_seed(0)
    model, threads = torch.nn.Linear(2048, 2048), torch.get_num_threads()
    found = set()
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            found.add(fingerprint(model))
            assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_skipped_rows_are_told_by_reason(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _rows(tmp_path, [1, 1])
    data.write_bytes(data.read_bytes() + b'{"id": "3", "image":\n')
    arguments = [
        *("--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--data", str(data)),
        *("--steps", "1", "--global-batch", "3", "--micro-batch", "1", "--dtype", "float32"),
    ]
    assert run(main, [*arguments, "--max-length", "2000"]) == 0
    assert "rows skipped since this start: broken JSON " in capsys.readouterr().err
    data.write_bytes(b"\n")
    assert run(main, [*arguments, "--output", str(tmp_path / "none")]) == 3
    assert "no rows" in capsys.readouterr().err
