"""The settings of BRPO and their named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from train.losses import Mean, Ratio
from train.ranges import CLIP, DECAY, POSITIVE, SEED, SHARE, at_least, check
from train.rewards import RewardConfig
from train.rollout import RolloutConfig

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long, and what is kept.

    A step draws answers to new questions and learns from them. `validate_every` steps (0: never)
    the checkpoint answers `num_validation` LookWorld questions, greedy. `tensorboard`: "auto"
    writes it where the package is installed.
    """

    seed: int = 0
    steps: int = 312
    save_every: int = 10
    validate_every: int = 0
    num_validation: int = 100
    tensorboard: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        check(
            self,
            seed=SEED,
            steps=at_least(1),
            save_every=at_least(1),
            validate_every=at_least(0),
            num_validation=at_least(1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """See `train.losses.brpo_loss` and `train.advantage.group_advantage`."""

    clip: float = 0.2
    clip_high: float | None = None
    beta: float = 0.1
    mean: Mean = "answer"
    ratio: Ratio = "token"
    divide_by_std: bool = True

    def __post_init__(self) -> None:
        check(self, clip=CLIP, clip_high=CLIP, beta=at_least(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How the weights follow.

    An update takes `accumulation` passes over `micro_batch` answers; a step makes as many updates
    as its answers fill, `epochs` times over. AdamW's eps is 1e-8. `warmup_frac` of all updates
    the rate rises; over the last `decay_frac` it falls to 0. Without `train_vision` vision tower
    and merger stay as they are. `recompute`: activations in the backward pass, to save memory.
    `shard`: masters and optimizer are spread over the processes (FSDP2), and a whole copy draws the
    answers; without it, every process holds everything and draws with the weights themselves.
    """

    micro_batch: int = 16
    accumulation: int = 2
    epochs: int = 1
    lr: float = 1e-6
    warmup_frac: float = 0.01
    decay_frac: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_norm: float = 1.0
    dtype: Dtype = "bfloat16"
    train_vision: bool = False
    recompute: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        check(
            self,
            micro_batch=at_least(1),
            accumulation=at_least(1),
            epochs=at_least(1),
            lr=at_least(0),
            warmup_frac=SHARE,
            decay_frac=SHARE,
            beta1=DECAY,
            beta2=DECAY,
            weight_decay=at_least(0),
            max_norm=POSITIVE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BrpoConfig:
    """All settings of a run; the names of the parts' fields are distinct."""

    run: RunConfig = field(default_factory=RunConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def updates_per_epoch(self) -> int:
        """Of one step, in each process."""
        answers = self.rollout.questions * self.rollout.group_size
        return -(-answers // (self.optim.micro_batch * self.optim.accumulation))

    @property
    def num_updates(self) -> int:
        return self.run.steps * self.optim.epochs * self.updates_per_epoch

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by part."""
        return asdict(self)


# The paper's table (section 4): batch 16 and accumulation 2 are read as 16 answers in a pass and
# 32 in an update, that is 4 questions of 8 answers, on each of 8 GPUs; 312 steps are its 10,000
# questions once. It names no clipping range (0.2, as in PPO), no weights of the rewards (1 each),
# and neither weight decay nor a decay of the rate (none).
_PAPER_7B = BrpoConfig(
    rollout=RolloutConfig(max_pixels=640 * 480), optim=OptimConfig(recompute=True, shard=True)
)

# A model of 6 M parameters whose reflections have 27 tokens on average and whose answers stay
# below 260: lambda, lengths, rate and the number of questions are scaled to it.
_LOOKWORLD_TINY = BrpoConfig(
    run=RunConfig(steps=120, save_every=5, validate_every=20),
    rollout=RolloutConfig(questions=8, max_completion=320, max_length=1024, batch=64),
    reward=RewardConfig(ideal_length=30.0, balance_floor=-1.0),
    optim=OptimConfig(micro_batch=16, accumulation=4, lr=2e-5, warmup_frac=0.05, dtype="float32"),
)

PRESETS: Mapping[str, BrpoConfig] = {"paper-7b": _PAPER_7B, "lookworld-tiny": _LOOKWORLD_TINY}
