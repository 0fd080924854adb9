"""Rollouts: G answers to each question, drawn through the session with the model in training.

The torch engine takes the trainer's own weights where device and dtype agree, so nothing is
copied. The paper injects nothing here; a policy that does is an option, and then the copies
stand in the training sequence as they stood in the rollout, without a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from build_engines.build import build
from la_trt.config import ModelConfig
from la_trt.engines.base import Engine
from la_trt.engines.native import NativeEngine
from la_trt.engines.onnx import OnnxEngine
from la_trt.engines.torch import DTYPES, TorchEngine
from la_trt.errors import UsageError
from la_trt.events import DoneEvent, Result, TokenEvent
from la_trt.files.bundle import open_bundle
from la_trt.model import QwenVL
from la_trt.model.weights import save_pretrained
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import Policy
from la_trt.sampling import SamplingParams
from la_trt.session import Session
from la_trt.tags import REFLECTION_OPEN, TokenTable
from train.advantage import group_advantage
from train.batch import TrainingSequence
from train.ranges import at_least, check
from train.reinject import Injection, Turn, lay_out
from train.rewards import RewardConfig, Rewards, count_reflections, reward_answer
from train.tasks import Task

EngineFactory = Callable[[QwenVL], Engine]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn.

    `questions`: of one step, in each process, with `group_size` answers each. `policy`: a preset
    or a YAML file; "text" injects nothing, as in the paper. `max_completion`, `max_length`:
    tokens of an answer, and of prompt, answer and injections. `max_pixels` of a picture; 0: the
    checkpoint's. `batch`: answers that are decoded at once. `engine`: "torch" runs the weights
    themselves; "onnx" and "native" build a bundle of them for every step, in a temporary directory.
    """

    questions: int = 4
    group_size: int = 8
    temperature: float = 1.0
    policy: str = "text"
    max_completion: int = 1024
    max_length: int = 8192
    max_pixels: int = 0
    batch: int = 32
    engine: Literal["torch", "onnx", "native"] = "torch"

    def __post_init__(self) -> None:
        check(
            self,
            questions=at_least(1),
            group_size=at_least(2),  # an answer alone is its group's mean and teaches nothing
            max_completion=at_least(1),
            max_pixels=at_least(0),
            batch=at_least(1),
        )
        if not self.temperature > 0:
            raise UsageError(
                f"temperature: expected a number above 0, got {self.temperature}\n"
                "greedy answers are all alike and teach nothing"
            )
        if self.max_length <= self.max_completion:
            raise UsageError(
                f"max_length: expected more than max_completion {self.max_completion}, "
                f"got {self.max_length}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One drawn answer with its rewards.

    `drawn` (R,) bool: tokens that the model drew, the others were forced. `logprobs` (R,) float32
    as the engine gave them. `advantage` within its group; `kept` False: it takes no part in
    training (no finite logits, or truncated and masked). `question` counts those of the step.
    """

    question: int
    result: Result
    drawn: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    rewards: Rewards
    num_reflections: int
    num_reflection_tokens: int
    advantage: float
    kept: bool

    @property
    def truncated(self) -> bool:
        return self.result.finish_reason == "length"


def torch_engine(model: QwenVL, config: RolloutConfig) -> TorchEngine:
    """An engine over the live weights of `model`, with empty KV slots."""
    weights = model.model.norm.weight
    name = next(name for name, dtype in DTYPES.items() if dtype == weights.dtype)
    return TorchEngine(
        model,
        device=weights.device.type,
        dtype=name,
        max_batch=config.batch,
        max_len=min(config.max_length, model.config.text.max_position_embeddings),
    )


def bundle_engine(model: QwenVL, config: RolloutConfig, ckpt: Path) -> Engine:
    """The engine over a float32 bundle of the present weights, with empty KV slots.

    `ckpt` gives the tokenizer's files. Its files are gone when this returns, its memory is not.
    As many threads as PyTorch has.
    """
    max_len = min(config.max_length, model.config.text.max_position_embeddings)
    options: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "max_batch": config.batch,
        "max_len": max_len,
    }
    with TemporaryDirectory(prefix="rollout-") as scratch:
        exported, bundle = Path(scratch, "ckpt"), Path(scratch, "bundle")
        save_pretrained(model, exported, dtype=torch.float32, companions=ckpt)
        native = config.engine == "native"
        build(exported, bundle, max_model_len=max_len, graphs=not native)
        opened = open_bundle(bundle, verify=False)
        return NativeEngine(opened, **options) if native else OnnxEngine(opened, **options)


def engine_factory(config: RolloutConfig, ckpt: Path) -> EngineFactory:
    """What makes the engine that `config.engine` asks for, anew for the weights of each step."""
    if config.engine == "torch":
        return lambda model: torch_engine(model, config)
    return lambda model: bundle_engine(model, config, ckpt)


def roll_out(
    session: Session,
    tasks: Sequence[Task],
    policy: Policy,
    config: RolloutConfig,
    rewards: RewardConfig,
    *,
    divide_by_std: bool = True,
) -> list[Answer]:
    """`group_size` answers to each task, group after group, rewarded and compared.

    Sample j of a task draws from stream j of the task's seed: the same weights and tasks give
    the same answers. Raises: UsageError, InputError where a prompt does not fit.
    """
    options = [
        GenerationOptions(
            policy=policy,
            sampling=SamplingParams(temperature=config.temperature, seed=task.seed),
            max_tokens=config.max_completion,
            num_samples=config.group_size,
        )
        for task in tasks
    ]
    num = len(tasks) * config.group_size
    tokens: list[list[TokenEvent]] = [[] for _ in range(num)]
    results: list[Result | None] = [None] * num
    for event in session.generate_batch([task.prompt for task in tasks], options):
        if isinstance(event, TokenEvent):
            tokens[event.sequence].append(event)
        elif isinstance(event, DoneEvent):
            results[event.sequence] = event.result
    answers = []
    for i, (events, result) in enumerate(zip(tokens, results, strict=True)):
        assert result is not None, f"answer {i} never ended"
        task = tasks[i // config.group_size]
        answers.append(_judge(i // config.group_size, task, events, result, session, rewards))
    return _compare(answers, config.group_size, divide_by_std)


def _judge(
    question: int,
    task: Task,
    events: Sequence[TokenEvent],
    result: Result,
    session: Session,
    config: RewardConfig,
) -> Answer:
    tags = session.tags
    num, inside = count_reflections(_spoken(result), tags.reflection_open, tags.reflection_close)
    truncated = result.finish_reason == "length"
    rewards = reward_answer(
        result.text,
        task.answer,
        num_reflections=num,
        num_reflection_tokens=inside,
        truncated=truncated,
        config=config,
    )
    masked = truncated and config.truncated == "mask"
    return Answer(
        question=question,
        result=result,
        drawn=np.array([not e.forced for e in events], np.bool_),
        logprobs=np.array([e.logprob for e in events], np.float32),
        rewards=rewards,
        num_reflections=num,
        num_reflection_tokens=inside,
        advantage=0.0,
        kept=result.finish_reason != "numerical_error" and not masked,
    )


def _spoken(result: Result) -> list[int]:
    """The answer's tokens without the one that ends it."""
    ended = result.finish_reason == "stop"
    return result.tokens[:-1] if ended else result.tokens


def _compare(answers: Sequence[Answer], group_size: int, divide_by_std: bool) -> list[Answer]:
    """The answers with their advantages; those not kept count in no group."""
    kept = torch.tensor([a.kept for a in answers]).view(-1, group_size)
    totals = torch.tensor([a.rewards.total for a in answers], dtype=torch.float64)
    advantages = group_advantage(
        totals.view(-1, group_size), divide_by_std=divide_by_std, valid_G=kept
    )
    flat = advantages.flatten().tolist()
    return [replace(a, advantage=value) for a, value in zip(answers, flat, strict=True)]


def training_sequence(
    task: Task, answer: Answer, policy: Policy, config: ModelConfig
) -> TrainingSequence:
    """The rollout as it stood in its KV slot; every drawn token is a target, no other is.

    Of an answer that is left out only the prompt remains, without a target.
    """
    tokens = np.array(answer.result.tokens, np.int64)
    if not answer.kept:
        stub = np.zeros(1, np.int64)
        turn = Turn(prompt=task.prompt, response_ids=stub, learn=np.zeros(1, np.bool_))
        return lay_out(turn, (), inject=policy.inject, config=config)
    turn = Turn(prompt=task.prompt, response_ids=tokens, learn=answer.drawn)
    injections = [
        Injection(step=event.step, selected=event.selected)
        for event in answer.result.reinjections
        if not event.skipped
    ]
    return lay_out(turn, injections, inject=policy.inject, config=config)


def banned_tokens(policy: Policy, vocabulary: TokenTable) -> tuple[int, ...]:
    """Ids that the policy keeps from being drawn: `<REFLECTION>` for `never`."""
    tag = vocabulary.token_id(REFLECTION_OPEN)
    return () if policy.allow_reflection or tag is None else (tag,)


def summary(answers: Sequence[Answer], group_size: int) -> dict[str, float]:
    """What the answers of one step were like, all of them counted, truncated ones too."""
    totals = np.array([a.rewards.total for a in answers]).reshape(-1, group_size)

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return {
        "reward": float(totals.mean()),
        "reward_accuracy": mean([a.rewards.accuracy for a in answers]),
        "reward_format": mean([a.rewards.format for a in answers]),
        "reward_balance": mean([a.rewards.balance for a in answers]),
        "reward_std": float(totals.std(axis=1).mean()),
        "equal_groups_frac": float((np.ptp(totals, axis=1) == 0).mean()),
        "reflections": mean([float(a.num_reflections) for a in answers]),
        "reflection_tokens": mean([float(a.num_reflection_tokens) for a in answers]),
        "response_tokens": mean([float(len(a.result.tokens)) for a in answers]),
        "injected_tokens": mean([float(a.result.usage.reinjected_tokens) for a in answers]),
        "truncated_frac": mean([float(a.truncated) for a in answers]),
        "left_out_frac": mean([float(not a.kept) for a in answers]),
    }
