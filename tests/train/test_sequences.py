"""Training sequences: what is learned, where copies stand, what a branch sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from la_trt.lookworld import WorldConfig, sample
from la_trt.model import QwenVL
from la_trt.processor.prompt import Processor
from la_trt.processor.tokenizer import Vocabulary
from la_trt.reattention.inject import embed_copies
from train.branches import BranchAttention
from train.pixels import patchify
from train.questions import QuestionBatches
from train.sequences import IGNORE, branch_tokens, prefix_tokens, response_targets
from train.shape import tiny_model
from train.tokenizer import padded_size

WORLD = WorldConfig()


@pytest.mark.parametrize("size", [(224, 224), (280, 168), (84, 140)])
def test_prompt_is_the_processors(tiny_processor: Processor, size: tuple[int, int]) -> None:
    drawn = sample("train", 3, replace(WORLD, sizes=(size,)), "count")
    assert drawn.image is not None
    prompt = tiny_processor(drawn.question.text, [drawn.image])
    rows, cols = size[1] // 28, size[0] // 28
    prefix, start = prefix_tokens(tiny_processor.vocabulary, rows, cols)
    branch = branch_tokens(
        tiny_processor.vocabulary,
        drawn.question.text,
        drawn.response.text,
        (),
        rows=rows,
        cols=cols,
        start=start,
    )
    length = len(prompt.input_ids)
    ids = np.concatenate([prefix.input_ids, branch.input_ids])[:length]
    visual = np.concatenate([prefix.visual_row, branch.visual_row])[:length]
    positions = np.concatenate([prefix.position_ids, branch.position_ids], axis=1)[:, :length]
    np.testing.assert_array_equal(ids, prompt.input_ids)
    np.testing.assert_array_equal(visual, prompt.visual_row)
    np.testing.assert_array_equal(positions, prompt.position_ids)


def test_pixels_are_the_processors(tiny_processor: Processor) -> None:
    drawn = sample("train", 4, replace(WORLD, sizes=((280, 168),)), "count")
    assert drawn.image is not None
    features = tiny_processor.image(drawn.image)
    config = tiny_model(544, _controls(tiny_processor.vocabulary)).vision
    ours = patchify(np.stack([np.asarray(drawn.image)]), config)
    np.testing.assert_allclose(ours.numpy(), features.pixel_values, atol=1e-5)


def test_copies_stand_where_the_session_puts_them(tiny_processor: Processor) -> None:
    drawn = sample("train", 5, WORLD, "digit")
    assert drawn.image is not None
    vocabulary = tiny_processor.vocabulary
    prompt = tiny_processor(drawn.question.text, [drawn.image])
    _, start = prefix_tokens(vocabulary, 8, 8)
    branch = branch_tokens(
        vocabulary, drawn.question.text, drawn.response.text, (), rows=8, cols=8, start=start
    )
    at = int(np.flatnonzero(branch.input_ids == vocabulary.controls["<REFLECTION>"])[0])
    copies = slice(at - 64, at)
    chunk, following = embed_copies(
        prompt,
        np.arange(64),
        int(branch.position_ids[:, at - 65].max()) + 1,
        image_token_id=vocabulary.controls["<|image_pad|>"],
        merge_size=2,
    )
    np.testing.assert_array_equal(branch.position_ids[:, copies], chunk.position_ids)
    np.testing.assert_array_equal(branch.input_ids[copies], chunk.input_ids)
    np.testing.assert_array_equal(branch.visual_row[copies], chunk.visual_row)
    assert (branch.position_ids[:, at] == following).all()
    assert (branch.targets[copies] == IGNORE).all()
    assert branch.targets[at - 65] == vocabulary.controls["<REFLECTION>"]


def test_without_copies_positions_count_up(tiny_processor: Processor) -> None:
    drawn = sample("train", 5, WORLD, "digit")
    arguments = (tiny_processor.vocabulary, drawn.question.text, drawn.response.text, ())
    branch = branch_tokens(*arguments, rows=8, cols=8, start=11, reattention="none")
    expected = np.tile(np.arange(11, 11 + len(branch)), (3, 1))
    np.testing.assert_array_equal(branch.position_ids, expected)


def test_a_reflection_left_out(tiny_processor: Processor) -> None:
    """`<REFLECTION>` is learned, the conclusion after it too, in the place where it would stand."""
    drawn = sample("train", 5, replace(WORLD, error_rate=0.0), "digit")
    vocabulary, text = tiny_processor.vocabulary, drawn.response.text
    arguments = (vocabulary, drawn.question.text, text)
    short = branch_tokens(*arguments, (), rows=8, cols=8, start=11, reflect=False)
    expected = np.tile(np.arange(11, 11 + len(short)), (3, 1))
    np.testing.assert_array_equal(short.position_ids, expected)
    head, tail = text[: text.index("<REFLECTION>")], text[text.index("<CONCLUSION>") :]
    said = vocabulary.encode(head + tail, control=True)
    assert short.input_ids[-len(said) :].tolist() == said
    at = len(short) - len(vocabulary.encode(tail, control=True))
    assert short.targets[at - 1] == vocabulary.controls["<REFLECTION>"]
    following = [*short.input_ids[at + 1 :], vocabulary.controls["<|im_end|>"]]
    assert short.targets[at:].tolist() == following
    for spans, conclude in ((((0, 1),), True), ((), False)):
        ended = branch_tokens(
            *arguments, spans, rows=8, cols=8, start=11, reflect=False, conclude=conclude
        )
        assert len(ended) == at and ended.targets[-1] == vocabulary.controls["<REFLECTION>"]


def test_wrong_entries_are_not_learned(tiny_vocabulary: Vocabulary) -> None:
    samples = [sample("train", i, WORLD, want_image=False) for i in range(60)]
    drawn = next(s for s in samples if s.response.spans)
    text, spans = drawn.response.text, drawn.response.spans
    ids, learn = response_targets(tiny_vocabulary, text, spans)
    assert tiny_vocabulary.decode(ids) == text
    said = "".join(tiny_vocabulary.decode([i]) for i, on in zip(ids, learn, strict=True) if on)
    kept = list(text)
    for start, end in spans:
        kept[start:end] = [""] * (end - start)
    assert said == "".join(kept)
    assert 0 < (~learn).sum() < len(ids) / 2


def test_a_branch_equals_the_sequence_written_out(tiny_vocabulary: Vocabulary) -> None:
    model = QwenVL(tiny_model(padded_size(tiny_vocabulary), _controls(tiny_vocabulary)))
    model.initialize(1, std=0.05)
    batches = QuestionBatches(
        tiny_vocabulary,
        seed=1,
        scenes=2,
        questions=3,
        world=WORLD,
        reattention="copy",
        reflect=True,
    )
    drawn = [batches._draw(np.random.default_rng(k), (112, 168)) for k in range(2)]
    batch = batches._batch(drawn)
    visual = torch.randn(2 * 24, 256)
    prefix = int(batch["prefix"])
    embeds = model.embed(batch["input_ids"], batch["visual_row"], visual)
    attention = BranchAttention(prefix=prefix, num_branches=3)
    with torch.no_grad():
        rows = model.decoder(embeds, batch["position_ids"], attention=attention).hidden_BSE
        own = (rows.shape[1] - prefix) // 3
        for b, d in enumerate(drawn):
            for n, branch in enumerate(d.branches):
                place = slice(prefix + n * own, prefix + n * own + len(branch))
                both = [slice(0, prefix), place]
                alone = torch.cat([embeds[b : b + 1, s] for s in both], dim=1)
                where = torch.cat([batch["position_ids"][:, b : b + 1, s] for s in both], dim=2)
                plain = model.decoder(alone, where).hidden_BSE[0]
                torch.testing.assert_close(rows[b, place], plain[prefix:], atol=2e-5, rtol=1e-4)


def _controls(vocabulary: Vocabulary) -> dict[str, int]:
    return vocabulary.controls
