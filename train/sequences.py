"""Training sequences: a prompt shared by the questions about one picture, one branch a question.

The prefix is everything up to the end of the image; it is the same for all questions about it.
A branch is the rest of the prompt and the response, with copies of the visual tokens before
each `<REFLECTION>` where re-attention is `copy` (docs/architecture.md, Looking again: `embed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from la_trt.processor.mrope import image_positions, injection_positions
from la_trt.processor.tokenizer import Vocabulary
from la_trt.tags import REFLECTION_OPEN

IGNORE = -100
IntArray = NDArray[np.int64]
Reattention = Literal["none", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A run of T tokens: `input_ids` (T,), `visual_row` (T,) with -1 for text, `position_ids`
    (3, T), `targets` (T,), the id to predict at each place or IGNORE, and `caption` (T,), 1 where
    the target belongs to the CAPTION, else 0."""

    input_ids: IntArray
    visual_row: IntArray
    position_ids: IntArray
    targets: IntArray
    caption: IntArray

    def __len__(self) -> int:
        return len(self.input_ids)

    def text(self) -> Tokens:
        """The same run without its visual tokens; the text stays at its positions."""
        kept = self.visual_row < 0
        return Tokens(
            input_ids=self.input_ids[kept],
            visual_row=self.visual_row[kept],
            position_ids=self.position_ids[:, kept],
            targets=self.targets[kept],
            caption=self.caption[kept],
        )


def prefix_tokens(vocabulary: Vocabulary, rows: int, cols: int) -> tuple[Tokens, int]:
    """The prompt up to the end of an image of rows x cols visual tokens, and the next position."""
    head = vocabulary.encode("<|im_start|>user\n<|vision_start|>", control=True)
    pad, end = vocabulary.controls["<|image_pad|>"], vocabulary.controls["<|vision_end|>"]
    num, at = rows * cols, len(head)
    inside, after = image_positions((1, 2 * rows, 2 * cols), 2, at)
    positions = np.concatenate(
        [np.tile(np.arange(at), (3, 1)), inside, np.full((3, 1), after)], axis=1
    )
    ids = np.array([*head, *[pad] * num, end], np.int64)
    visual = np.full(len(ids), -1, np.int64)
    visual[at : at + num] = np.arange(num)
    tokens = Tokens(
        input_ids=ids,
        visual_row=visual,
        position_ids=positions,
        targets=np.full(len(ids), IGNORE, np.int64),
        caption=np.zeros(len(ids), np.int64),
    )
    return tokens, after + 1


def response_targets(
    vocabulary: Vocabulary, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], NDArray[np.bool_]]:
    """Ids of a response, and which of them to learn: those that touch none of the spans.

    `spans` are [start, end) in characters of `text`.
    """
    ids = vocabulary.encode(text, control=True)
    wrong = np.zeros(len(text.encode()), np.bool_)
    for start, end in spans:
        wrong[len(text[:start].encode()) : len(text[:end].encode())] = True
    ends = np.cumsum([len(vocabulary.token_bytes(i)) for i in ids])
    starts = np.concatenate([[0], ends[:-1]])
    learn = [not wrong[a:b].any() for a, b in zip(starts, ends, strict=True)]
    return ids, np.array(learn, np.bool_)


def branch_tokens(
    vocabulary: Vocabulary,
    question: str,
    response: str,
    spans: Sequence[tuple[int, int]],
    *,
    rows: int,
    cols: int,
    start: int,
    reattention: Reattention = "copy",
    reflect: bool = True,
    conclude: bool = True,
) -> Tokens:
    """The branch of one question from position `start` on.

    Copies of all rows x cols visual tokens stand before each `<REFLECTION>` with `copy`.
    Without `reflect` what stands between the first one, which is learned still, and the CONCLUSION
    is left out. It ends there without `conclude`, and where it has spans: what that concludes
    follows from its reflection.
    """
    asked = vocabulary.encode(question)
    turn = vocabulary.encode("<|im_end|>\n<|im_start|>assistant\n", control=True)
    said, learn = response_targets(vocabulary, response, spans)
    texts = [*asked, *turn, *said, vocabulary.controls["<|im_end|>"]]
    known = len(asked) + len(turn)
    learned = np.concatenate([np.zeros(known, np.bool_), learn, [True]])
    reflection = vocabulary.controls[REFLECTION_OPEN]
    pad, num = vocabulary.controls["<|image_pad|>"], rows * cols
    opened, closed = vocabulary.controls["<CAPTION>"], vocabulary.controls["</CAPTION>"]
    inside, caption = 0, list[int]()
    concluded = vocabulary.controls["<CONCLUSION>"]
    skipping = False
    ids: list[int] = []
    visual: list[int] = []
    targets: list[int] = []
    positions: list[IntArray] = []
    position = start
    for i, token in enumerate(texts[:-1]):
        if token == reflection and i >= known:
            if not reflect and (spans or not conclude):
                break
            skipping = not reflect
            if reattention == "copy" and reflect:
                where, position = injection_positions(
                    (1, 2 * rows, 2 * cols), 2, position, np.arange(num)
                )
                ids += [pad] * num
                visual += range(num)
                targets += [IGNORE] * num
                caption += [0] * num
                positions.append(where)
        skipping = skipping and token != concluded
        if skipping:
            continue
        inside = 1 if token == opened else 0 if token == closed else inside
        caption.append(inside)
        ids.append(token)
        visual.append(-1)
        targets.append(texts[i + 1] if learned[i + 1] else IGNORE)
        positions.append(np.full((3, 1), position))
        position += 1
    return Tokens(
        input_ids=np.array(ids, np.int64),
        visual_row=np.array(visual, np.int64),
        position_ids=np.concatenate(positions, axis=1),
        targets=np.array(targets, np.int64),
        caption=np.array(caption, np.int64),
    )


def pad_right(parts: Sequence[Tokens], length: int, pad_id: int) -> Tokens:
    """The parts, each padded to `length`, one after the other."""

    def joined(arrays: Sequence[IntArray], fill: int) -> IntArray:
        short = [length - a.shape[-1] for a in arrays]
        padded = [
            np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, n)], constant_values=fill)
            for a, n in zip(arrays, short, strict=True)
        ]
        return np.concatenate(padded, axis=-1)

    return Tokens(
        input_ids=joined([p.input_ids for p in parts], pad_id),
        visual_row=joined([p.visual_row for p in parts], -1),
        position_ids=joined([p.position_ids for p in parts], 0),
        targets=joined([p.targets for p in parts], IGNORE),
        caption=joined([p.caption for p in parts], 0),
    )
