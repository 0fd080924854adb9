"""An engine of scripted logits and masses that records what is put into each KV slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from la_trt.config import ModelConfig, TextConfig, VisionConfig
from la_trt.engines.base import EngineLimits, Step, StepOutput, check_step, past_lengths
from la_trt.errors import MachineError
from la_trt.processor.mrope import prompt_positions
from la_trt.processor.types import Prompt
from la_trt.tags import ALL_TAGS

EOS, IMAGE, VISION_START, VISION_END, VIDEO = 256, 257, 258, 259, 260
TAGS = {tag: 270 + i for i, tag in enumerate(ALL_TAGS)}
R, R_END = TAGS["<REFLECTION>"], TAGS["</REFLECTION>"]
VOCAB = 300


class ByteTokens:
    """A token table: ids below 256 are bytes, then the special tokens and the tags."""

    special_ids = frozenset({EOS, IMAGE, VISION_START, VISION_END, VIDEO})

    def __init__(self, *, tags: bool = True) -> None:
        self._ids = dict(TAGS) if tags else {}
        self._texts = {i: text.encode() for text, i in TAGS.items()}
        self._texts[EOS] = b"<|im_end|>"

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self._texts.get(token_id, b"")


def mock_config() -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            mrope_section=(2, 1, 1),
        ),
        vision=VisionConfig(
            depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=8
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        eos_token_ids=(EOS,),
    )


def ids_of(text: str) -> list[int]:
    """Ids of a text in which tags become their tokens."""
    for tag, i in TAGS.items():
        text = text.replace(tag, chr(0xE000 + i))
    out: list[int] = []
    for char in text:
        code = ord(char)
        out.extend([code - 0xE000] if code >= 0xE000 and code < 0xF000 else char.encode())
    return out


def make_prompt(text: str = "Q?", grids: Sequence[tuple[int, int]] = ((2, 3),)) -> Prompt:
    """A prompt of images of (rows, cols) merged tokens, then text."""
    ids: list[int] = [ord("U")]
    rows: list[int] = [-1]
    for r, c in grids:
        first = max(rows) + 1
        ids += [VISION_START, *[IMAGE] * (r * c), VISION_END]
        rows += [-1, *range(first, first + r * c), -1]
    ids += list(text.encode())
    rows += [-1] * len(text.encode())
    thw = np.array([(1, 2 * r, 2 * c) for r, c in grids], np.int64).reshape(-1, 3)
    positions, following = prompt_positions(rows, thw, 2)
    patches = int(thw.prod(axis=1).sum())
    return Prompt(
        text=text,
        input_ids=np.array(ids, np.int64),
        visual_row=np.array(rows, np.int64),
        position_ids=positions,
        pixel_values=np.zeros((patches, 1176), np.float32),
        image_grid_thw=thw,
        next_position=following,
    )


@dataclass
class Entry:
    """One KV position: 'text' with its id, or 'visual' / 'kv' with its source token."""

    kind: str
    value: int
    position: tuple[int, int, int]


Script = Callable[[list[Entry]], "int | np.ndarray"]
Masses = Callable[[list[Entry], int], np.ndarray]


def answer(prompt: Prompt, tokens: Sequence[int]) -> Script:
    """Logits that spell `tokens` after the prompt, then the end token."""
    num_text = int((prompt.visual_row < 0).sum())

    def script(entries: list[Entry]) -> int:
        step = sum(e.kind == "text" for e in entries) - num_text
        return tokens[step] if 0 <= step < len(tokens) else EOS

    return script


def flat_mass(entries: list[Entry], num_visual: int) -> np.ndarray:
    return np.full(num_visual, 0.5 / max(num_visual, 1), np.float32)


@dataclass
class MockEngine:
    script: Script
    masses: Masses = flat_mass
    max_len: int = 1000
    max_batch: int = 4
    max_slots: int = 100
    supports_kv: bool = True
    draft_rows: int = 0
    config: ModelConfig = field(default_factory=mock_config)

    def __post_init__(self) -> None:
        self.kv: dict[int, list[Entry]] = {}
        self.capacity: dict[int, int] = {}
        self.finished: list[list[Entry]] = []
        self.steps: list[Step] = []
        self.vision_calls = 0
        self.mass_requests = 0
        self._next_slot = 0

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(
            name="mock",
            device="cpu",
            dtype="float32",
            max_batch=self.max_batch,
            max_len=self.max_len,
            supports_kv_reinject=self.supports_kv,
            draft_rows=self.draft_rows,
        )

    def vision(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> np.ndarray:
        self.vision_calls += 1
        count = int(grid_thw.prod(axis=1).sum()) // 4
        return np.tile(np.arange(count, dtype=np.float32)[:, None], (1, 8))

    def alloc(self, capacity: int) -> int:
        assert 0 < capacity <= self.max_len
        if len(self.kv) >= self.max_slots:
            raise MachineError("no KV slot left")
        self._next_slot += 1
        self.kv[self._next_slot] = []
        self.capacity[self._next_slot] = capacity
        return self._next_slot

    def free(self, slot: int) -> None:
        self.finished.append(self.kv.pop(slot))
        del self.capacity[slot]

    def truncate(self, slot: int, length: int) -> None:
        del self.kv[slot][length:]

    def length(self, slot: int) -> int:
        return len(self.kv[slot])

    def kv_reinject(self, slot: int, source_index: np.ndarray, delta: int) -> None:
        entries = self.kv[slot]
        assert len(entries) + len(source_index) <= self.capacity[slot], "capacity exceeded"
        for i in source_index:
            source = entries[int(i)]
            assert source.kind == "visual", "kv copies come from the first view"
            t, h, w = (p + delta for p in source.position)
            entries.append(Entry("kv", source.value, (t, h, w)))

    def forward(self, step: Step) -> StepOutput:
        slots = step.slots
        check_step(
            step,
            past_lengths(step, self.length),
            [self.capacity[s] for s in slots],
            drafts=self.draft_rows > 0,
        )
        self.steps.append(step)
        logits = np.full((len(slots), VOCAB), -5.0, np.float32)
        masses: list[np.ndarray | None] = []
        for b, slot in enumerate(slots):
            self._append(step, b)
            wanted = self.script(self.kv[slot])
            if isinstance(wanted, np.ndarray):
                logits[b] = wanted
            else:
                logits[b, wanted] = 20.0
            masses.append(self._mass(step, b))
        return StepOutput(logits=logits, visual_mass=tuple(masses) if step.visual_keys else ())

    def _append(self, step: Step, b: int) -> None:
        for t in range(int(step.cu_seqlens[b]), int(step.cu_seqlens[b + 1])):
            x, y, z = (int(p) for p in step.position_ids[:, t])
            row = -1 if step.visual_row is None else int(step.visual_row[t])
            if row >= 0:
                assert step.visual_embeds is not None
                source = int(step.visual_embeds[row, 0])
                assert step.input_ids[t] == IMAGE
                self.kv[step.slots[b]].append(Entry("visual", source, (x, y, z)))
            else:
                entry = Entry("text", int(step.input_ids[t]), (x, y, z))
                self.kv[step.slots[b]].append(entry)

    def _mass(self, step: Step, b: int) -> np.ndarray | None:
        keys = step.visual_keys[b] if step.visual_keys else None
        if keys is None:
            return None
        self.mass_requests += 1
        entries = self.kv[step.slots[b]]
        expected = [(i, e.value) for i, e in enumerate(entries) if e.kind != "text"]
        given = list(zip(keys.kv_index.tolist(), keys.source.tolist(), strict=True))
        assert given == expected, "visual keys do not name the visual tokens of the slot"
        return self.masses(entries, keys.num_visual)
