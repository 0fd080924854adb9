"""What is learnt from the answers of one step: passes, loss, updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from la_trt.model import QwenVL
from train.actor import Actor, Answers
from train.batch import Batch, TrainingSequence, collate, pieces
from train.losses import brpo_loss
from train.parallel import mean_over_processes
from train.policy import answer_logprobs
from train.presets_brpo import BrpoConfig
from train.schedule import warmup_stable_decay


@dataclass(slots=True)
class Row:
    """One answer to learn from. `engine`, `old`, `ref` (R,): log-probabilities of its targets by
    the engine that drew it, by the weights it was drawn with, and by the reference.

    An answer that is left out is a row without targets, so that every process makes equally
    many passes."""

    sequence: TrainingSequence
    advantage: float
    engine: Tensor
    old: Tensor | None = None
    ref: Tensor | None = None


class Updater:
    """Changes the actor's weights by the answers it gave. `reference` None: beta is 0."""

    def __init__(
        self,
        config: BrpoConfig,
        actor: Actor,
        reference: QwenVL | None,
        *,
        banned: Sequence[int],
        device: str,
        rank: int,
    ) -> None:
        self.config, self.actor, self.reference = config, actor, reference
        self.banned, self.device, self.rank = tuple(banned), device, rank

    def learn(self, rows: Sequence[Sequence[Row]], step: int) -> list[dict[str, float]]:
        """The metrics of each update by the rows of each question of `step`."""
        self._look_up(rows)
        before = step * self.config.optim.epochs * self.config.updates_per_epoch
        return [
            self._update(chunk, before + k, first=k == 0)
            for k, chunk in enumerate(self._chunks(rows, step))
        ]

    def _chunks(self, rows: Sequence[Sequence[Row]], step: int) -> Iterator[list[Row]]:
        """The rows of each update, maybe none; each epoch has its own order of the questions."""
        optim = self.config.optim
        size = optim.micro_batch * optim.accumulation
        for epoch in range(optim.epochs):
            rng = np.random.default_rng((self.config.run.seed, step, epoch, self.rank))
            order = [row for q in rng.permutation(len(rows)) for row in rows[int(q)]]
            for k in range(self.config.updates_per_epoch):
                yield order[k * size : (k + 1) * size]

    @torch.no_grad()
    def _look_up(self, rows: Sequence[Sequence[Row]]) -> None:
        """Fill in `old` and `ref`, as far as they are needed."""
        flat = by_length([row for group in rows for row in group])
        several = self.config.optim.epochs * self.config.updates_per_epoch > 1
        temperature = self.config.rollout.temperature
        for part in pieces(flat, self.config.optim.micro_batch):
            batch = self._batch(part)
            if several:
                for row, values in zip(part, _each(self._pass(batch)), strict=True):
                    row.old = values
            if self.reference is not None:
                by_reference = answer_logprobs(
                    self.reference, batch, temperature=temperature, banned=self.banned
                )
                for row, values in zip(part, _each(by_reference), strict=True):
                    row.ref = values

    def _pass(self, batch: Batch) -> Answers:
        temperature = self.config.rollout.temperature
        return self.actor.logprobs(batch, temperature=temperature, banned=self.banned)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        return collate([row.sequence for row in rows]).to(self.device)

    def _update(self, rows: Sequence[Row], done: int, *, first: bool) -> dict[str, float]:
        """One step of the optimizer, after `done` others; `first` since the answers were drawn."""
        optim, objective = self.config.optim, self.config.objective
        tokens = sum(len(row.engine) for row in rows)
        answers = sum(len(row.engine) > 0 for row in rows)
        counted = answers if objective.mean == "answer" else tokens
        normaliser = torch.tensor([float(counted)], dtype=torch.float64)
        mean_over_processes([normaliser])
        if not float(normaliser):
            return {}
        totals = dict.fromkeys(("policy", "kl", "clip_frac", "ratio", "entropy", "engine_gap"), 0.0)
        for part in pieces(by_length(rows), optim.micro_batch):
            loss, metrics, gap = self._loss(part, float(normaliser))
            loss.backward()
            own = sum(len(row.engine) for row in part) / max(1, tokens)
            for name, value in metrics.items():
                totals[name] += value if name in ("policy", "kl") else own * value
            totals["engine_gap"] = max(totals["engine_gap"], gap)
        factor = warmup_stable_decay(
            done,
            total=self.config.num_updates,
            warmup=round(optim.warmup_frac * self.config.num_updates),
            decay_frac=optim.decay_frac,
        )
        norm = self.actor.step(optim.lr * factor)
        if not first or self.config.rollout.temperature != 1 or self.banned:
            del totals["engine_gap"]  # only comparable before the weights change
        loss_value = totals["policy"] + objective.beta * totals["kl"]
        if not math.isfinite(norm):
            return {"unusable_frac": 1.0}
        kept = {"loss": loss_value, "norm": norm, "lr": optim.lr * factor, "unusable_frac": 0.0}
        return totals | kept

    def _loss(
        self, rows: Sequence[Row], normaliser: float
    ) -> tuple[Tensor, dict[str, float], float]:
        objective = self.config.objective
        logprobs, entropy, mask = self._pass(self._batch(rows))

        def padded(values: Sequence[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            if not known:
                return None
            return pad_sequence(known, batch_first=True).to(logprobs.device)

        old, ref = padded([row.old for row in rows]), padded([row.ref for row in rows])
        loss, metrics = brpo_loss(
            logprobs,
            logprobs.detach() if old is None else old,
            torch.tensor([row.advantage for row in rows], device=logprobs.device),
            mask,
            ref_logprobs_NS=ref,
            entropy_NS=entropy,
            clip=objective.clip,
            clip_high=objective.clip_high,
            beta=objective.beta,
            mean=objective.mean,
            ratio=objective.ratio,
            normaliser=normaliser,
        )
        engine = padded([row.engine for row in rows])
        assert engine is not None, "rows without an engine's log-probabilities"
        gap = ((logprobs.detach() - engine) * mask).abs()
        return loss, metrics, float(gap.max()) if gap.numel() else 0.0


def _each(answers: Answers) -> list[Tensor]:
    """The log-probabilities of each answer, without padding."""
    logprobs_NR, _, mask_NR = answers
    return [row[kept] for row, kept in zip(logprobs_NR, mask_NR, strict=True)]


def by_length(rows: Sequence[Row]) -> list[Row]:
    """The rows, short ones first: rows that share a pass then need little padding."""
    return sorted(rows, key=lambda row: len(row.sequence))


def means(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the updates that have it."""
    names = dict.fromkeys(name for update in updates for name in update)
    return {n: float(np.mean([u[n] for u in updates if n in u])) for n in names}


def mean_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The mean of each metric over the processes."""
    values = torch.tensor(list(metrics.values()), dtype=torch.float64)
    mean_over_processes([values])
    return dict(zip(metrics, values.tolist(), strict=True))
