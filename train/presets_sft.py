"""The settings of SFT and their named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from la_trt.errors import UsageError
from la_trt.events import InjectKind
from la_trt.reattention.policy import Policy, preset, resolve_policy
from train.ranges import SEED, at_least, check
from train.trainee import OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long, and what is kept.

    `steps` 0: `epochs` times the rows of the data file. `tensorboard`: "auto" writes it where
    the package is installed.
    """

    seed: int = 0
    steps: int = 0
    epochs: int = 1
    save_every: int = 100
    tensorboard: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        check(self, seed=SEED, steps=at_least(0), epochs=at_least(1), save_every=at_least(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class LookConfig:
    """What is put in before each `<REFLECTION>` of a response, as at inference.

    none | copy | route; `inject` embed | kv. `max_reflections` a response; those after that get
    nothing.
    """

    reattention: Literal["none", "copy", "route"] = "copy"
    inject: InjectKind = "embed"
    route_percent: float = 50.0
    max_reflections: int = 8

    @property
    def policy(self) -> Policy:
        """The policy of the session that does the same."""
        if self.reattention == "none":
            return preset("text")
        return resolve_policy(
            self.reattention,
            inject=self.inject,
            route_percent=self.route_percent if self.reattention == "route" else None,
            max_reflections=self.max_reflections,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What a step takes in.

    `global_batch` sequences a step, over all processes and however many passes of `micro_batch`
    that makes: the training is the same on any number of processes. `max_length`: KV positions
    of a sequence, copies included; longer rows are skipped. `max_pixels` of a picture; 0: the
    checkpoint's.
    """

    global_batch: int = 64
    micro_batch: int = 1
    max_length: int = 8192
    max_pixels: int = 0

    def __post_init__(self) -> None:
        check(
            self,
            global_batch=at_least(1),
            micro_batch=at_least(1),
            max_length=at_least(1),
            max_pixels=at_least(0),
        )
        if self.global_batch % self.micro_batch:
            raise UsageError(
                f"global_batch: expected a multiple of micro_batch {self.micro_batch}, "
                f"got {self.global_batch}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """All settings of a run; the names of the parts' fields are distinct."""

    run: RunConfig = field(default_factory=RunConfig)
    look: LookConfig = field(default_factory=LookConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


# The paper's section 5: batch 1 x accumulation 8 on 8 GPUs are 64 sequences a step. It names no
# weight decay (0), no clipping (1) and no decay of the rate (none); 8192 tokens are those of its
# BRPO stage.
_PAPER_7B = SftConfig(
    run=RunConfig(epochs=13),
    data=DataConfig(max_pixels=262_144),
    optim=OptimConfig(lr=1e-5, warmup_frac=0.01, recompute=True),
)

# From the cold-start checkpoint of 6 M parameters; all of embedding and head are trained, since
# its words are as new as its tags. The rate and the number of steps have not been tuned.
_LOOKWORLD_TINY = SftConfig(
    run=RunConfig(steps=300),
    data=DataConfig(global_batch=24, micro_batch=8, max_length=1024),
    optim=OptimConfig(lr=3e-4, beta2=0.98, warmup_frac=0.05, decay_frac=0.5, only_tag_rows=False),
)

PRESETS: Mapping[str, SftConfig] = {"paper-7b": _PAPER_7B, "lookworld-tiny": _LOOKWORLD_TINY}
