"""Training itself: optimizer, dense labels, a few steps that learn, resuming, the export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from la_trt.errors import UsageError
from la_trt.files.checkpoint import open_checkpoint
from la_trt.lookworld import WorldConfig, generate_scene, sample
from la_trt.model.weights import load_model
from la_trt.processor.tokenizer import Vocabulary
from la_trt.tags import ALL_TAGS
from train import precision
from train.coldstart import ColdStartConfig, Trainer, batch_loss, sft, training_world
from train.dense import HEADS, dense_loss, dense_score, dense_targets
from train.muon import StackedMuon, orthogonalise
from train.precision import MasterWeights, fast_dtype, slowness_note
from train.pretrain import PretrainConfig, pretrain
from train.questions import QuestionBatches
from train.schedule import warmup_stable_decay
from train.tiny import recipe
from train.tokenizer import QWEN_CONTROLS

TRIAL = ColdStartConfig(
    steps=30, short_steps=0, scenes=2, questions=2, warmup=5, num_validation=0, lr=2e-3
)


def test_tokenizer_gives_text_back(tiny_vocabulary: Vocabulary) -> None:
    for index in range(30):
        drawn = sample("train", 10_000 + index, WorldConfig(), want_image=False)
        for text in (drawn.question.text, drawn.response.text, "Grüße 世界 <REFLECTION> 42\n"):
            ids = tiny_vocabulary.encode(text, control=True)
            assert tiny_vocabulary.decode(ids) == text


def test_controls_are_one_token_and_digits_too(tiny_vocabulary: Vocabulary) -> None:
    for token in (*QWEN_CONTROLS, *ALL_TAGS):
        assert len(tiny_vocabulary.encode(token, control=True)) == 1
        assert len(tiny_vocabulary.encode(token)) > 1
    assert [tiny_vocabulary.decode([i]) for i in tiny_vocabulary.encode("3,5 12")] == [
        "3",
        ",",
        "5",
        " 1",
        "2",
    ]
    assert set(tiny_vocabulary.special_ids) == {
        tiny_vocabulary.controls[token] for token in QWEN_CONTROLS
    }


def test_schedule_rises_holds_and_falls() -> None:
    factors = [warmup_stable_decay(step, total=10, warmup=2, decay_frac=0.4) for step in range(11)]
    assert factors == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 19, 5), (1, 4, 111)])
def test_orthogonalise(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    update = orthogonalise(torch.randn(shape), dtype)
    assert update.dtype == dtype
    singular = torch.linalg.svdvals(update.float())
    assert float(singular.min()) > 0.4 and float(singular.max()) < 1.5


def test_stacked_muon_equals_torchs() -> None:
    torch.manual_seed(0)
    stacks = [torch.randn(3, 24, 40), torch.randn(2, 40, 8)]
    ours = StackedMuon(stacks, weight_decay=0.1, dtype=torch.bfloat16)
    theirs = [nn.Parameter(m.clone()) for stack in ours.stacks for m in stack]
    optimizer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for gradient in ours.gradients:
            gradient.normal_()
        flat = [g for gradient in ours.gradients for g in gradient]
        for parameter, gradient in zip(theirs, flat, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        ours.step(0.02)
    mine = [m for stack in ours.stacks for m in stack]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_master_weights_clip_and_skip_what_is_not_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    before = [p.detach().clone() for p in module.parameters()]
    weights = MasterWeights({"m": module}, weight_decay=0.0, dtype=dtype)
    module(torch.full((2, 6), float("nan"), dtype=dtype)).sum().backward()
    assert not np.isfinite(weights.step(0.1))
    for old, master in zip(before, weights.masters.values(), strict=True):
        torch.testing.assert_close(master, old, atol=0, rtol=0)
    module(torch.ones(2, 6, dtype=dtype)).sum().backward()
    gradient = torch.cat([p.grad.float().flatten() for p in module.parameters()])  # type: ignore[union-attr]
    assert weights.step(0.1) == pytest.approx(float(gradient.norm()), rel=1e-3)
    for (name, master), live in zip(weights.masters.items(), module.parameters(), strict=True):
        assert live.dtype == dtype
        torch.testing.assert_close(live.float(), master.to(dtype).float(), atol=0, rtol=0)
        assert not torch.equal(master, before[list(weights.masters).index(name)])


def test_dense_targets_name_every_object() -> None:
    scene = generate_scene(11, 5, replace(WorldConfig(), min_objects=6))
    targets = dense_targets(scene, scene.rows, scene.cols)
    for seen in scene.seen():
        cell = targets[seen.row * scene.cols + seen.col]
        assert (cell[:3] > 0).all() and tuple(cell[4:]) == (seen.row, seen.col)
        assert cell[3] == (0 if seen.digit is None else 1 + seen.digit)
    assert (targets[:, 0] > 0).sum() == len(scene.objects)


def test_dense_score_and_loss_of_right_and_wrong_logits() -> None:
    scene = generate_scene(11, 6, replace(WorldConfig(), min_objects=8, digit_frac=1.0))
    targets = torch.from_numpy(dense_targets(scene, scene.rows, scene.cols))
    right = [
        20.0 * torch.nn.functional.one_hot(targets[:, i], num).float()
        for i, num in enumerate(HEADS.values())
    ]
    score = dense_score(right, targets)
    assert (score.exact, score.empty, score.digit, score.position) == (1, 1, 1, 1)
    assert float(dense_loss(right, targets)) < 1e-4
    wrong = [-part for part in right]
    assert dense_score(wrong, targets).exact == 0 and float(dense_loss(wrong, targets)) > 10


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_emulated_bfloat16_is_told(fast: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_dtype", lambda: fast)
    assert ("emulates" in slowness_note("bfloat16", "cpu")) == (fast is torch.float32)
    assert slowness_note("float32", "cpu") == slowness_note("bfloat16", "cuda") == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[float]]:
    """A trainer that saw one batch 20 times, and the losses."""
    trainer = Trainer(TRIAL, tmp_path_factory.mktemp("sft"), None)
    assert next(trainer.model.parameters()).dtype == fast_dtype()
    batch = _batch(trainer)
    losses = [trainer.train_step(batch)[0] for _ in range(20)]
    trainer.save()
    return trainer, losses


def _batch(trainer: Trainer) -> dict[str, torch.Tensor]:
    drawn = QuestionBatches(
        trainer.vocabulary,
        seed=0,
        scenes=2,
        questions=2,
        world=training_world(),
        reattention="copy",
        reflect=True,
    )
    rng = np.random.default_rng(0)
    return drawn._batch([drawn._draw(rng, (112, 112)) for _ in range(2)])


def test_twenty_steps_learn_one_batch(trained: tuple[Trainer, list[float]]) -> None:
    losses = trained[1]
    assert losses[0] > 5.5 and losses[-1] < 0.5 * losses[0]


def test_resuming_goes_on_where_it_stopped(trained: tuple[Trainer, list[float]]) -> None:
    trainer = trained[0]
    resumed = Trainer(TRIAL, trainer.output, None)
    assert resumed.step == 20
    batch = _batch(trainer)
    ours, theirs = trainer.train_step(batch), resumed.train_step(batch)
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, master in trainer.weights.masters.items():
        torch.testing.assert_close(master, resumed.weights.masters[name], atol=1e-6, rtol=0)


def test_a_shallower_decoder_is_trained_in_every_stage_and_exported(tmp_path: Path) -> None:
    assert {stage.layers for stage in recipe("start", 0, 1.0, layers=2)[1]} == {2}
    checkpoint = sft(replace(TRIAL, layers=2, steps=1), tmp_path, None)
    assert open_checkpoint(checkpoint).config.text.num_hidden_layers == 2
    load_model(checkpoint)


def test_export_opens_strictly_here_and_in_transformers(
    trained: tuple[Trainer, list[float]],
) -> None:
    transformers = pytest.importorskip("transformers")
    trainer = trained[0]
    directory = trainer.output / "checkpoint"
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config == trainer.model.config
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 12_000_000
    ours = load_model(directory, dtype=torch.float32)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    batch = _batch(trainer)
    prefix = int(batch["prefix"])
    ids, where = batch["input_ids"][:1, : prefix + 20], batch["position_ids"][:, :1, : prefix + 20]
    pixels = torch.randn(64, 1176)
    grid = torch.tensor([[1, 8, 8]])
    with torch.no_grad():
        visual = ours.vision(pixels, grid)
        embeds = ours.embed(ids, batch["visual_row"][:1, : prefix + 20], visual)
        mine = ours.logits(ours.decoder(embeds, where).hidden_BSE)
        reference = theirs(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=grid,
            position_ids=where,
            mm_token_type_ids=(ids == trainer.model.config.image_token_id).int(),
        ).logits
    torch.testing.assert_close(mine, reference, atol=1e-3, rtol=1e-3)


def test_exported_tokenizer_is_the_same_in_transformers(
    trained: tuple[Trainer, list[float]],
) -> None:
    transformers = pytest.importorskip("transformers")
    trainer = trained[0]
    theirs = transformers.AutoTokenizer.from_pretrained(trainer.output / "checkpoint")
    for index in range(20):
        drawn = sample("test", index, WorldConfig(), want_image=False)
        text = f"<|im_start|>user\n{drawn.question.text}<|im_end|>\n{drawn.response.text}"
        assert theirs(text)["input_ids"] == trainer.vocabulary.encode(text, control=True)
    settings = json.loads((trainer.output / "checkpoint" / "generation_config.json").read_text())
    assert settings["eos_token_id"][0] == trainer.vocabulary.controls["<|im_end|>"]


def test_average_is_what_is_exported(trained: tuple[Trainer, list[float]]) -> None:
    trainer = trained[0]
    saved = load_file(trainer.output / "checkpoint" / "model.safetensors")
    state = torch.load(trainer.path, weights_only=True)["weights"]["average"]
    for name, value in saved.items():
        torch.testing.assert_close(value, state[f"model.{name}"].bfloat16(), atol=0, rtol=0)


def test_loss_counts_only_learned_tokens(trained: tuple[Trainer, list[float]]) -> None:
    trainer = trained[0]
    batch = {**_batch(trainer), "num_branches": torch.tensor(2)}
    model = load_model(trainer.output / "checkpoint", dtype=torch.float32)
    with torch.no_grad():
        _, plain = batch_loss(model, None, batch, dense=0.0)
        changed = dict(batch)
        changed["targets"] = torch.where(batch["targets"] == -100, -100, 0)
        _, other = batch_loss(model, None, changed, dense=0.0)
    assert float(other) > float(plain)


def test_a_run_with_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    """From nothing, bit by bit: the tower, then the whole model; in one go or stopped between."""
    first = PretrainConfig(steps=2, batch=2, warmup=1, save_every=1, num_validation=1)
    stages = [replace(TRIAL, seed=5, steps=steps, decay_frac=0.0) for steps in (2, 4)]
    exported: list[bytes] = []
    for name, configs in {"once": stages[1:], "in two": stages}.items():
        tower = pretrain(first, tmp_path / name / "pretrain")
        for config in configs:
            checkpoint = sft(config, tmp_path / name / "sft", tower)
            exported.append((checkpoint / "model.safetensors").read_bytes())
    once, after_two, after_four = exported
    assert once == after_four != after_two


def test_a_first_stage_killed_while_it_saves_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn save never takes the place of the whole one before."""
    first = PretrainConfig(steps=2, batch=2, warmup=1, save_every=1, num_validation=1)
    whole = pretrain(first, tmp_path / "whole").read_bytes()
    save, calls = torch.save, []

    def torn(state: object, file: Any) -> None:
        calls.append(file)
        if len(calls) == 2:
            if isinstance(file, (str, Path)):
                Path(file).write_bytes(whole[:1000])
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        pretrain(first, tmp_path / "killed")
    monkeypatch.undo()
    ended = torch.load(pretrain(first, tmp_path / "killed"), weights_only=True)
    story = (tmp_path / "killed" / "pretrain.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in story] == [1, 2]
    wanted = torch.load(tmp_path / "whole" / "pretrain.pt", weights_only=True)
    assert ended["step"] == wanted["step"] == 2
    for name, value in wanted["weights"]["masters"].items():
        assert torch.equal(ended["weights"]["masters"][name], value), name


def test_a_run_is_not_gone_on_with_by_another_seed_or_shape(tmp_path: Path) -> None:
    """The state is refused, and neither it nor the settings beside it are touched."""
    first = PretrainConfig(steps=1, batch=2, save_every=1, num_validation=1)
    stage = replace(TRIAL, steps=1, save_every=1)
    pretrain(first, tmp_path)
    sft(stage, tmp_path, None)
    names = ("pretrain.pt", "pretrain_config.json", "sft.pt", "sft_config.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    with pytest.raises(UsageError, match="begun with seed 0, now 1"):
        pretrain(replace(first, seed=1), tmp_path)
    with pytest.raises(UsageError, match="begun with muon True, now False"):
        pretrain(replace(first, muon=False), tmp_path)
    for name, value in {"seed": stage.seed + 1, "layers": stage.layers + 1}.items():
        with pytest.raises(UsageError, match=f"{name} {getattr(stage, name)}, now {value}"):
            sft(replace(stage, **{name: value}), tmp_path, None)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_a_stage_killed_before_its_export_exports_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TRIAL, steps=2, save_every=2)

    def killed(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.coldstart.export", killed)
    with pytest.raises(KeyboardInterrupt):
        sft(config, tmp_path, None)
    monkeypatch.undo()
    log = tmp_path / "sft.jsonl"
    log.write_text('{"step": 1}\n')  # no state has it
    assert (sft(config, tmp_path, None) / "model.safetensors").is_file()
    assert not log.read_text()
