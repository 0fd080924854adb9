"""The KV slots of an engine: which are taken, how far each is filled, what it may hold."""

from __future__ import annotations

from collections.abc import Sequence

from la_trt.engines.base import IntArray
from la_trt.errors import MachineError, UsageError

DEFAULT_MAX_LEN = 8192


class SlotTable:
    """Lengths and capacities of `max_batch` slots of at most `max_len` tokens.

    The engine keeps the cache itself. User errors are raised, bugs of the caller asserted.
    """

    def __init__(self, max_batch: int, max_len: int) -> None:
        self.max_batch, self.max_len = max_batch, max_len
        self._lengths: dict[int, int] = {}
        self._capacities: dict[int, int] = {}

    @classmethod
    def of_bundle(cls, longest: int, max_batch: int, max_len: int | None) -> SlotTable:
        """The table of a bundle for sequences of up to `longest`. Raises UsageError."""
        max_len = min(longest, DEFAULT_MAX_LEN) if max_len is None else max_len
        for name, value in (("max_len", max_len), ("max_batch", max_batch)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{name}: expected an integer, got {value!r}")
        if not 1 <= max_len <= longest:
            raise UsageError(
                f"max_len (--max-model-len): expected 1 to {longest} (the bundle's), got {max_len}"
            )
        if max_batch < 1:
            raise UsageError(f"max_batch: expected at least 1, got {max_batch}")
        return cls(max_batch, max_len)

    def lowest_free(self, capacity: int) -> int:
        """A slot for `capacity` tokens. Raises MachineError (E_KV_CAPACITY, E_NO_SLOT)."""
        if not 0 < capacity <= self.max_len:
            raise MachineError(
                f"a sequence of {capacity} tokens does not fit the engine's "
                f"{self.max_len}\nask for fewer tokens, or give a larger max_len (--max-model-len)",
                name="E_KV_CAPACITY",
            )
        free = set(range(self.max_batch)) - self._lengths.keys()
        if not free:
            raise MachineError(
                f"all {self.max_batch} KV slots are taken\nfree one, or raise max_batch",
                name="E_NO_SLOT",
            )
        return min(free)

    def take(self, slot: int, capacity: int) -> None:
        """Nothing; the slot is taken and empty."""
        self._lengths[slot], self._capacities[slot] = 0, capacity

    def release(self, slot: int) -> None:
        """Nothing; the slot is free."""
        del self._lengths[slot], self._capacities[slot]

    def length(self, slot: int) -> int:
        """KV positions in use."""
        assert slot in self._lengths, f"slot {slot} is not allocated"
        return self._lengths[slot]

    def capacities(self, slots: Sequence[int]) -> list[int]:
        """What each of the slots may hold."""
        return [self._capacities[slot] for slot in slots]

    def grow(self, slot: int, count: int) -> None:
        """Nothing; `count` more positions are in use."""
        self._lengths[slot] += count

    def truncate(self, slot: int, length: int) -> None:
        """Nothing; positions from `length` on are forgotten."""
        assert 0 <= length <= self.length(slot), (
            f"truncate: length {length} outside 0..{self.length(slot)} of slot {slot}"
        )
        self._lengths[slot] = length

    def check_copies(self, slot: int, source_index: IntArray) -> None:
        """Assert that the slot holds every source, and has room for as many copies."""
        length, count = self.length(slot), len(source_index)
        assert count == 0 or int(source_index.min()) >= 0, "kv_reinject: negative source index"
        assert count == 0 or int(source_index.max()) < length, (
            f"kv_reinject: source index {int(source_index.max())} of {length} KV positions"
        )
        assert length + count <= self._capacities[slot], (
            f"slot {slot}: {length} + {count} tokens exceed capacity {self._capacities[slot]}"
        )
