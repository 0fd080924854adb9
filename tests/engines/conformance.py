"""One suite for every engine: subclass `EngineConformance` and give it a `make_engine` fixture.

    class TestMyEngine(EngineConformance):
        @pytest.fixture
        def make_engine(self):
            return lambda model, *, max_batch=4, max_len=2048: MyEngine(...)

The oracle is `tests/engines/oracle.py`: `transformers` modules, full attention matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from la_trt.engines.base import Engine, Step, VisualKeys
from la_trt.errors import MachineError
from la_trt.model import QwenVL
from tests.engines.oracle import expected_trace
from tests.engines.script import Trace, play, random_script, text_step
from tests.model.configs import hf_twin, random_grids, random_model, random_pixels

MakeEngine = Callable[..., Engine]


class EngineConformance:
    """Tolerances are for float32; an engine of less precision overrides them and says why."""

    logits_atol = 1e-4
    mass_atol = 1e-5

    @pytest.fixture(params=range(6))
    def seed(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture
    def model(self, seed: int) -> QwenVL:
        return random_model(seed)

    @pytest.fixture
    def engine(self, make_engine: MakeEngine, model: QwenVL) -> Engine:
        return make_engine(model, max_batch=4, max_len=2048)

    def check(self, got: Trace, expected: Trace) -> None:
        assert len(got.logits) == len(expected.logits)
        for i in range(len(got.logits)):
            where = f"pass {i}"
            np.testing.assert_allclose(
                got.logits[i], expected.logits[i], atol=self.logits_atol, rtol=0, err_msg=where
            )
            np.testing.assert_allclose(
                got.mass[i], expected.mass[i], atol=self.mass_atol, rtol=0, err_msg=where
            )

    def test_is_an_engine(self, engine: Engine, model: QwenVL) -> None:
        assert isinstance(engine, Engine)
        assert engine.config == model.config
        assert engine.limits.max_batch == 4

    def test_vision(self, engine: Engine, model: QwenVL, seed: int) -> None:
        for trial in range(3):
            grid = random_grids(model.config, 100 * seed + trial)
            pixels = random_pixels(model.config, grid, seed)
            got = engine.vision(pixels, grid)
            expected = model.vision(torch.from_numpy(pixels), torch.from_numpy(grid)).numpy()
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected, atol=self.logits_atol, rtol=0)

    @pytest.mark.parametrize("kinds", [(), ("embed",), ("kv",), ("embed", "kv", "embed", "kv")])
    def test_sequence_equals_the_direct_computation(
        self, engine: Engine, model: QwenVL, seed: int, kinds: tuple[str, ...]
    ) -> None:
        script = random_script(model.config, seed, kinds=kinds)
        (got,) = play(engine, [script])
        expected = expected_trace(hf_twin(model), script)
        assert max(mass.sum() for mass in expected.mass) > 0.05, "hardly any mass to compare"
        self.check(got, expected)

    def test_ragged_batch_equals_one_by_one(self, engine: Engine, model: QwenVL, seed: int) -> None:
        all_kinds = [("embed",), ("kv", "kv"), (), ("kv", "embed")]
        scripts = [
            random_script(model.config, 10 * seed + i, kinds=kinds)
            for i, kinds in enumerate(all_kinds)
        ]
        alone = [play(engine, [script])[0] for script in scripts]
        for got, expected in zip(play(engine, scripts), alone, strict=True):
            self.check(got, expected)

    def test_batch_of_any_slots(self, engine: Engine, model: QwenVL, seed: int) -> None:
        """Slots that do not follow one another, as when sequences end at different times."""
        scripts = [random_script(model.config, 50 + seed + i) for i in range(2)]
        alone = [play(engine, [script])[0] for script in scripts]
        slots = [engine.alloc(16) for _ in range(3)]
        engine.free(slots[0])
        engine.free(slots[2])
        for got, expected in zip(play(engine, scripts), alone, strict=True):
            self.check(got, expected)

    def test_prefill_in_chunks(self, engine: Engine, model: QwenVL) -> None:
        ids = (np.arange(111) * 7 % 100).tolist()
        slot = engine.alloc(111)
        whole = engine.forward(text_step(slot, ids, 0)).logits
        for cuts in ([0, 1, 2, 111], [0, 19, 110, 111]):
            engine.truncate(slot, 0)
            for start, stop in pairwise(cuts):
                output = engine.forward(text_step(slot, ids[start:stop], start))
            np.testing.assert_allclose(output.logits, whole, atol=self.logits_atol, rtol=0)

    def test_truncate_forgets_and_goes_on(self, engine: Engine, model: QwenVL) -> None:
        slot = engine.alloc(40)
        engine.forward(text_step(slot, [1, 2, 3, 4, 5], 0))
        expected = engine.forward(text_step(slot, [6], 5)).logits
        engine.forward(text_step(slot, list(range(50, 69)), 6))
        engine.truncate(slot, 5)
        assert engine.length(slot) == 5
        got = engine.forward(text_step(slot, [6], 5)).logits
        np.testing.assert_allclose(got, expected, atol=self.logits_atol, rtol=0)
        engine.truncate(slot, 6)
        assert engine.length(slot) == 6
        with pytest.raises(AssertionError):
            engine.truncate(slot, 7)

    def test_no_mass_unless_asked(self, engine: Engine, model: QwenVL) -> None:
        slot = engine.alloc(8)
        output = engine.forward(text_step(slot, [1, 2, 3], 0))
        assert all(mass is None for mass in output.visual_mass)
        assert output.logits.shape == (1, model.config.text.vocab_size)
        assert output.logits.dtype == np.float32

    def test_mass_is_a_share(self, engine: Engine, model: QwenVL, seed: int) -> None:
        (trace,) = play(engine, [random_script(model.config, seed)])
        for mass in trace.mass:
            assert (mass >= 0).all()
            assert 0 < mass.sum() < 1

    def test_guesses_are_tokens_one_by_one(self, engine: Engine, model: QwenVL) -> None:
        """A slot that comes again in a step; engines that take no guesses refuse it."""
        ids, first = [11, 12, 13, 14], 9
        keys = VisualKeys(kv_index=np.array([1, 4, 5]), source=np.array([1, 0, 1]), num_visual=2)
        slots = [engine.alloc(20) for _ in range(3)]
        for slot in slots:
            engine.forward(text_step(slot, list(range(first)), 0))
        guesses = replace(
            text_step(slots[0], ids, first),
            slots=(slots[0],) * 4,
            cu_seqlens=np.arange(5),
            visual_keys=(keys,) * 4,
        )
        if not engine.limits.draft_rows:
            with pytest.raises(AssertionError, match="duplicates"):
                engine.forward(guesses)
            return
        alone = [
            engine.forward(replace(text_step(slots[1], [i], first + n), visual_keys=(keys,)))
            for n, i in enumerate(ids)
        ]
        got = engine.forward(guesses)
        assert engine.length(slots[0]) == engine.length(slots[1]) == first + 4
        for b, expected in enumerate(alone):
            np.testing.assert_array_equal(got.logits[b], expected.logits[0])
            np.testing.assert_array_equal(got.visual_mass[b], expected.visual_mass[0])
        twice = replace(guesses, slots=(slots[0], slots[2], slots[0], slots[0]))
        with pytest.raises(AssertionError, match="duplicates"):
            engine.forward(twice)
        long = replace(guesses, slots=(slots[0],) * 2, cu_seqlens=np.array([0, 2, 4]))
        with pytest.raises(AssertionError, match="a guess of more than one token"):
            engine.forward(replace(long, visual_keys=()))

    def test_slots_run_out_and_come_back(self, engine: Engine) -> None:
        slots = [engine.alloc(4) for _ in range(4)]
        assert len(set(slots)) == 4
        with pytest.raises(MachineError):
            engine.alloc(4)
        engine.free(slots[1])
        fresh = engine.alloc(4)
        assert engine.length(fresh) == 0

    def test_capacity_is_kept(self, engine: Engine) -> None:
        with pytest.raises(MachineError):
            engine.alloc(2049)
        slot = engine.alloc(5)
        engine.forward(text_step(slot, [1, 2, 3], 0))
        with pytest.raises(AssertionError):
            engine.forward(text_step(slot, [4, 5, 6], 3))
        with pytest.raises(AssertionError):
            engine.kv_reinject(slot, np.array([0, 1, 2]), 3)
        with pytest.raises(AssertionError):
            engine.kv_reinject(slot, np.array([3]), 3)
        assert engine.length(slot) == 3
        engine.kv_reinject(slot, np.array([0, 1]), 3)
        assert engine.length(slot) == 5

    def test_slots_of_different_capacity(self, engine: Engine, model: QwenVL) -> None:
        """A larger slot opened later does not disturb a smaller one that is in use."""
        small = engine.alloc(6)
        engine.forward(text_step(small, [1, 2, 3], 0))
        large = engine.alloc(300)
        engine.forward(text_step(large, list(range(100)), 0))
        got = engine.forward(text_step(small, [4], 3)).logits
        engine.truncate(small, 0)
        expected = engine.forward(text_step(small, [1, 2, 3, 4], 0)).logits
        np.testing.assert_allclose(got, expected, atol=self.logits_atol, rtol=0)

    def test_nan_stays_in_its_slot(self, engine: Engine, model: QwenVL) -> None:
        """A poisoned sequence leaves nothing behind that reaches the next one in its slot."""
        bad = np.full((1, model.config.text.hidden_size), np.nan, np.float32)
        slots = [engine.alloc(64), engine.alloc(64)]
        rows = np.array([-1, 0, *[-1] * 7])
        step = text_step(slots[1], [0] * 9, 0)
        poisoned = replace(step, visual_row=rows, visual_embeds=bad)
        assert np.isnan(engine.forward(poisoned).logits).any()
        engine.free(slots[1])
        slots[1] = engine.alloc(64)
        engine.forward(text_step(slots[0], list(range(30)), 0))
        engine.forward(text_step(slots[1], [3], 0))
        both = Step(
            slots=tuple(slots),
            cu_seqlens=np.array([0, 1, 2], np.int64),
            input_ids=np.array([5, 6], np.int64),
            position_ids=np.array([[30, 1]] * 3, np.int64),
        )
        assert np.isfinite(engine.forward(both).logits).all()
