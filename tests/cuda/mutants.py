"""Wrong edits of the CUDA kernels, each of which the emulated tests must notice.

    python -m tests.cuda.mutants [--jobs N] [NUMBER ...]

A few run with the ordinary tests, all of them with `make test-cuda`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda.emulated import TURING, Mutant, build

_DECODE, _PREFILL = "attention_decode", "attention_prefill"


def _mutant(file: str, old: str, new: str, kernel: str = "", group: str = "") -> Mutant:
    stem = kernel or file.removesuffix(".cu")
    return Mutant(file=file, old=old, new=new, kernel=stem, group=group or stem)


def _turing(old: str, new: str, kernel: str, file: str = "turing.cuh") -> Mutant:
    return Mutant(file=file, old=old, new=new, kernel=kernel, group=kernel, program=TURING)


MUTANTS = (
    # Bounds.
    _mutant(f"{_DECODE}.cu", "i / 2 * 8 >= end", "i / 2 * 8 > end"),
    _mutant("attention_tile.cuh", "at >= limit[i / 2]", "at > limit[i / 2]", _PREFILL),
    _mutant("attention_tile.cuh", "key + kTileKeys > least", "key > least", _PREFILL),
    _mutant("attention_finish.cuh", "position < span.kv_len", "position <= span.kv_len", _DECODE),
    _mutant(
        "kv_rows.cuh",
        "copy_async_16(raw + to, from, row + at < end)",
        "copy_async_16(raw + to, from, row + at <= end)",
        _DECODE,
    ),
    _mutant(f"{_PREFILL}.cu", "limit[i] = past + token[i] + 1", "limit[i] = past + token[i]"),
    _mutant(
        "attention_vision.cu",
        "blockIdx.x) * kTileRows >= length",
        "blockIdx.x) * kTileRows >= length - 1",
    ),
    _mutant("kv_reinject.cu", "token >= p.num_tokens", "token >= p.num_tokens - 1"),
    # Indices.
    _mutant(f"{_DECODE}.cu", "first + step / kKeptSteps * kKeptKeys", "first + step * kStepKeys"),
    _mutant(
        f"{_DECODE}.cu",
        "(lane % 16) * (kDim + 8) + lane / 16 * 8",
        "(lane % 8 + lane / 16 * 8) * (kDim + 8) + lane / 8 % 2 * 8",
    ),
    _mutant(
        "attention_tile.cuh",
        "lane % 16 * kStride + lane / 16 * 8",
        "(lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8",
        "attention_vision",
    ),
    _mutant(
        "attention_finish.cuh",
        "(span.query_len - 1) * num_heads",
        "(span.query_len - 2) * num_heads",
        _PREFILL,
    ),
    _mutant(
        "rope_write_kv.cu",
        "p.mrope_section[0] + p.mrope_section[1] ? 1",
        "p.mrope_section[1] + p.mrope_section[2] ? 1",
    ),
    _mutant(
        "rope_write_kv.cu",
        "span.kv_len - span.query_len + index",
        "span.kv_len - span.query_len + index - 1",
    ),
    _mutant("kv_reinject.cu", "rows + p.source_index[token]", "rows + p.source_index[0]"),
    _mutant("route_select.cu", "equal_at < num_equal)) {", "equal_at <= num_equal)) {"),
    # Arithmetic.
    _mutant(f"{_DECODE}.cu", "softmax.sums[j][2 + i] *= shrink;", ""),
    _mutant(
        "attention_tile.cuh", "rows.total[i] * shrink + total", "rows.total[i] + total", _PREFILL
    ),
    _mutant("quantise.cuh", "high * cos + low * sin", "high * cos - low * sin", "kv_reinject"),
    _mutant(
        "quantise.cuh",
        "scales[row] = top / largest_code<kType>()",
        "scales[row] = top / 127",
        "rope_write_kv",
    ),
    _mutant("numbers.cuh", "(spread & 0x800080) << 8", "(spread & 0x800000) << 8", _DECODE),
    _mutant("route_select.cu", "const double value = mass + 0.0", "const double value = mass"),
    _mutant("sample.cu", "a.index < b.index", "a.index > b.index"),
    _mutant("sample.cu", "if (distance < last) sum +=", "if (distance <= last) sum +="),
    _mutant("sample.cu", "ties_left -= population(tied);", ""),
    _mutant("sample.cu", "if (i == banned) return kFarthest;", ""),
    _mutant("sample.cu", "logits[banned] > best.score", "logits[banned] > 1e30f"),
    _mutant("sample.cu", "if (i != banned || !finite)", "if (i != banned)"),
    _mutant("sample.cu", "{logits, result.best, 1, -1}", "{logits, result.best, 1, banned}"),
    _mutant("sample.cu", "ties_left -= i < warp ? taken : 0;", ""),
    # Workspace.
    _mutant("attention_finish.cuh", "mass.num_visual > 0 && ", "", _PREFILL),
    # Capability 7.5.
    _turing("a[2], a[3], b[1]", "a[2], a[3], b[0]", _DECODE),
    _turing("a[0], a[1], b[0]", "a[0], a[2], b[0]", _PREFILL),
    _turing(
        "*static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0)",
        "*static_cast<const uint4*>(from) : make_uint4(0x7e007e00, 0, 0, 0)",
        "attention_vision",
    ),
    _turing("key + kAhead * kStepKeys", "key + kStepKeys", _DECODE, f"{_DECODE}.cu"),
)
ORDINARY = (0, 10, 21)  # the numbers that the ordinary tests run


def main() -> int:
    """The number of mutants that no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    given = parser.parse_args()
    build()
    survivors = 0
    numbers = given.numbers or list(range(len(MUTANTS)))
    with ThreadPoolExecutor(given.jobs) as pool:
        for number, survived in zip(numbers, pool.map(_survives, numbers), strict=True):
            mutant = MUTANTS[number]
            survivors += survived
            verdict = "SURVIVED" if survived else "noticed "
            print(f"{number:2} {verdict} {mutant.file}: {mutant.old} -> {mutant.new}", flush=True)
    print(f"{survivors} survivors of {len(numbers)} mutants")
    return survivors


def _survives(number: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return bool(MUTANTS[number].survives(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
