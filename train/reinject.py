"""Training sequences as inference makes them: visual tokens again before each `<REFLECTION>`.

Positions, place and choice of the copies are the session's (docs/architecture.md, Looking again),
made by the same functions. What ROUTE takes depends on the model's own attention, earlier
injections included, so it is found by passes without gradient, one for each reflection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from la_trt.config import ModelConfig
from la_trt.errors import UsageError
from la_trt.events import InjectKind
from la_trt.model import MassQuery
from la_trt.processor.types import Prompt
from la_trt.reattention.inject import VisualLayout, embed_copies, kv_copies
from la_trt.reattention.policy import Policy
from la_trt.reattention.select import num_selected, select_tokens
from la_trt.reattention.trigger import fires
from train.batch import IGNORE, Batch, TrainingSequence, collate
from train.parallel import largest

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
# (B, Q, N) float32, mean over layers and heads: what the queries of a batch put on those keys.
Masses = Callable[[Batch, MassQuery], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A prompt and the answer to it: `response_ids` (R,), the end token included.

    `learn` (R,) bool says which of them have a loss; None: all. `seed` and `sample` are those of
    the generation, which the control `random` draws from.
    """

    prompt: Prompt
    response_ids: IntArray
    learn: NDArray[np.bool_] | None = None
    seed: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        assert self.response_ids.ndim == 1 and len(self.response_ids), "an answer without tokens"
        assert self.learn is None or self.learn.shape == self.response_ids.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Visual tokens `selected` (N,), in image order, put in before response token `step`."""

    step: int
    selected: IntArray


class _Writer:
    """A sequence that grows: the prompt, then text and injections by turns."""

    def __init__(self, prompt: Prompt, inject: InjectKind, config: ModelConfig) -> None:
        self.prompt, self.inject, self.config = prompt, inject, config
        self.layout = VisualLayout(prompt)
        self.ids, self.rows = [prompt.input_ids], [prompt.visual_row]
        self.positions = [prompt.position_ids]
        self.length, self.position = len(prompt.input_ids), prompt.next_position
        self.predicts = [np.array([self.length - 1], np.int64)]
        self.copies = [np.zeros((3, 0), np.int64)]  # source, delta, visible from

    def _add(self, ids: IntArray, rows: IntArray, positions: IntArray) -> None:
        self.ids.append(ids)
        self.rows.append(rows)
        self.positions.append(positions)
        self.length += len(ids)

    def text(self, ids: IntArray) -> None:
        """Response tokens; the output of each predicts the next."""
        steps = np.arange(len(ids), dtype=np.int64)
        self.predicts.append(self.length + steps)
        self._add(ids, np.full(len(ids), -1, np.int64), np.stack([self.position + steps] * 3))
        self.position += len(ids)

    def visual(self, selected: IntArray) -> None:
        """Visual tokens once more, as `embed_copies` or `kv_copies` place them."""
        merge, start = self.config.vision.spatial_merge_size, self.position
        if self.inject == "embed":
            pad = self.config.image_token_id
            chunk, self.position = embed_copies(
                self.prompt, selected, start, image_token_id=pad, merge_size=merge
            )
            self._add(chunk.input_ids, chunk.visual_row, chunk.position_ids)
            return
        calls, self.position = kv_copies(
            self.prompt, self.layout, selected, start, merge_size=merge
        )
        for call in calls:
            source = call.source_index
            where = [np.full_like(source, value) for value in (call.delta, self.length)]
            self.copies.append(np.stack([source, *where]))


def lay_out(
    turn: Turn, injections: Sequence[Injection], *, inject: InjectKind, config: ModelConfig
) -> TrainingSequence:
    """The sequence of a turn with these injections, as the session's KV slot holds it.

    The last response token has no forward pass, so it is a target only. Copies carry no loss.
    Steps must ascend and lie below R - 1; `Result.reinjections` of a rollout gives them.
    """
    response, done = turn.response_ids, 0
    writer = _Writer(turn.prompt, inject, config)
    for injection in injections:
        step = injection.step
        assert done <= step < len(response) - 1, f"injection at {step}: out of order or too late"
        writer.text(response[done:step])
        writer.visual(injection.selected)
        done = step
    writer.text(response[done:-1])
    predicts = np.concatenate(writer.predicts)
    targets = np.full(writer.length, IGNORE, np.int64)
    targets[predicts] = response if turn.learn is None else np.where(turn.learn, response, IGNORE)
    source, delta, visible_from = np.concatenate(writer.copies, axis=1)
    return TrainingSequence(
        prompt=turn.prompt,
        input_ids=np.concatenate(writer.ids),
        visual_row=np.concatenate(writer.rows),
        position_ids=np.concatenate(writer.positions, axis=1),
        targets=targets,
        predicts=predicts,
        copy_source=source,
        copy_delta=delta,
        copy_visible_from=visible_from,
    )


def injection_steps(turn: Turn, policy: Policy, reflection_id: int | None) -> list[int]:
    """The response tokens (of those that have a forward pass) with an injection before them.

    The session's rules but one: that there is room is taken for granted, since whoever trains
    refuses longer sequences. Raises UsageError for a trigger that depends on sampling.
    """
    if policy.trigger.kind == "entropy":
        raise UsageError("policy trigger entropy: cannot be trained\nuse reflection or every")
    if not policy.injects or num_selected(policy.select, turn.prompt.num_visual) == 0:
        return []
    found = [
        step
        for step, token in enumerate(turn.response_ids[:-1].tolist())
        if fires(
            policy.trigger,
            step=step,
            is_reflection=token == reflection_id,
            entropy_nats=0.0,
            steps_since_last=None,
        )
    ]
    return found[: policy.max_reflections]


def build_sequences(
    turns: Sequence[Turn],
    policy: Policy,
    *,
    reflection_id: int | None,
    config: ModelConfig,
    masses: Masses | None = None,
) -> list[TrainingSequence]:
    """The sequences of the turns under a policy: what the session would have put in, and where.

    ROUTE asks `masses` once for every reflection, all turns together; with several processes as
    often in each of them, so that sharded models stay in step.
    """
    steps = [injection_steps(turn, policy, reflection_id) for turn in turns]
    if policy.needs_mass:
        assert masses is not None, "ROUTE: needs the model's masses"
        chosen = _route(turns, steps, policy, config, masses)
    else:
        chosen = [_fixed(turn, own, policy) for turn, own in zip(turns, steps, strict=True)]
    return [
        lay_out(turn, own, inject=policy.inject, config=config)
        for turn, own in zip(turns, chosen, strict=True)
    ]


def _fixed(turn: Turn, steps: Sequence[int], policy: Policy) -> list[Injection]:
    """The injections of a policy that needs no mass."""
    rng = np.random.default_rng([turn.seed, turn.sample, 1])  # the session's own stream
    num = turn.prompt.num_visual
    return [
        Injection(
            step=step,
            selected=select_tokens(policy.select, num, step_masses=(), first_pass=None, rng=rng),
        )
        for step in steps
    ]


def _route(
    turns: Sequence[Turn],
    steps: Sequence[Sequence[int]],
    policy: Policy,
    config: ModelConfig,
    masses: Masses,
) -> list[list[Injection]]:
    """The injections of ROUTE, reflection by reflection."""
    chosen: list[list[Injection]] = [[] for _ in turns]
    seen: list[list[FloatArray]] = [[] for _ in turns]
    for k in range(largest(max(map(len, steps), default=0))):
        # A turn without a k-th reflection takes part with its prompt alone.
        due = [own[k] if k < len(own) else -1 for own in steps]
        drafts = [
            _until(turn, max(end, 0), chosen[b] if end >= 0 else [], policy.inject, config)
            for b, (turn, end) in enumerate(zip(turns, due, strict=True))
        ]
        queries = [
            draft.predicts[len(seen[b]) + 1 :] if end > 0 else draft.predicts[:1]
            for b, (draft, end) in enumerate(zip(drafts, due, strict=True))
        ]
        found = source_masses(drafts, queries, masses)
        for b, end in enumerate(due):
            if end < 0:
                continue
            first = found[b][0] if end == 0 else None
            if first is None:
                seen[b] += list(found[b])
            selected = select_tokens(
                policy.select,
                turns[b].prompt.num_visual,
                step_masses=seen[b],
                first_pass=first,
                rng=np.random.default_rng(0),
            )
            chosen[b].append(Injection(step=end, selected=selected))
    return chosen


def _until(
    turn: Turn,
    step: int,
    injections: Sequence[Injection],
    inject: InjectKind,
    config: ModelConfig,
) -> TrainingSequence:
    """The turn up to the pass before response token `step`."""
    cut = Turn(prompt=turn.prompt, response_ids=turn.response_ids[: step + 1])
    return lay_out(cut, injections, inject=inject, config=config)


def source_masses(
    sequences: Sequence[TrainingSequence], queries: Sequence[IntArray], masses: Masses
) -> list[FloatArray]:
    """(Q, M) float32 a sequence: the mass that its tokens at `queries` (Q,) put on each source
    visual token; what a copy receives counts for its source."""
    batch = collate(sequences)
    keys = [s.visual_keys(batch.length) for s in sequences]
    query = MassQuery(
        query_index_BQ=_padded(queries), key_index_BN=_padded([index for index, _ in keys])
    )
    with torch.no_grad():
        mass_BQN = masses(batch, query).float().cpu().numpy()
    out = []
    for b, (_, source) in enumerate(keys):
        by_source_MQ = np.zeros((sequences[b].prompt.num_visual, len(queries[b])), np.float32)
        np.add.at(by_source_MQ, source, mass_BQN[b, : len(queries[b]), : len(source)].T)
        out.append(np.ascontiguousarray(by_source_MQ.T))
    return out


def _padded(indices: Sequence[IntArray]) -> Tensor:
    """(B, longest) int64, filled up with 0."""
    longest = max(map(len, indices))
    return torch.from_numpy(np.stack([np.pad(i, (0, longest - len(i))) for i in indices]))
