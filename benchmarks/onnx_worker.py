"""Our side of `onnx_3b`: a process that builds, or that decodes on request.

    python -m benchmarks.onnx_worker build CKPT BUNDLE QUANT BLOCK_SIZE
    python -m benchmarks.onnx_worker serve BUNDLE THREADS huge|small|mass
    python -m benchmarks.onnx_worker profile BUNDLE THREADS small|mass CONTEXT DECODE

`build` prints one line: seconds and peak memory by kind. `serve` answers lines of JSON:
{"ids", "decode", "mass"} with {"prefill_s", "decode_s": [...], "cpu_s"}, the last being the
processor time of the decoding; {"reinject": N, "context"} with {"reinject_s"}. `profile` prints
{"attention_us", "step_us"}: a decode step and what attention and mass take of it, medians of ONNX
Runtime's profile.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_3b import NUM_PLAIN_TOKENS
from benchmarks.report import memory_bytes
from build_engines import build
from la_trt.engines.base import Step, VisualKeys
from la_trt.engines.onnx import OnnxEngine
from la_trt.files.bundle import open_bundle

NUM_VISUAL = 256
FIRST_VISUAL = 16


def run_build(ckpt: str, output: str, quant: Any, block_size: str) -> None:
    """Build once, watching this process's anonymous memory every 20 ms."""
    peak = {"RssAnon": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak["RssAnon"] = max(peak["RssAnon"], memory_bytes()["RssAnon"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    stages: dict[str, float] = {}
    build(
        Path(ckpt),
        Path(output),
        quant=quant,
        block_size=int(block_size),
        max_model_len=4096,
        progress=lambda stage, *_: stages.setdefault(stage, time.perf_counter() - start),
    )
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "peak_rss_bytes": memory_bytes()["VmHWM"],
                "peak_anonymous_bytes": peak["RssAnon"],
                "stage_starts_s": {k: round(v, 1) for k, v in stages.items()},
            }
        ),
        flush=True,
    )


class Decoder:
    """Greedy decoding of one sequence, each step timed around the engine and the argmax."""

    def __init__(self, bundle: Path, threads: int, kind: str, profile: Path | None = None) -> None:
        self.engine = OnnxEngine(
            open_bundle(bundle, verify=False),
            threads=threads,
            max_batch=1,
            max_len=4096,
            mass=kind == "mass",
            huge_pages=kind == "huge",
            profile=profile,
        )
        self.huge_page_bytes = self.engine.pages.wait()
        self.slot = self.engine.alloc(4096)
        self.prompt: list[int] = []
        self.first, self.prefill_s = 0, 0.0

    def step(self, ids: np.ndarray, keys: VisualKeys | None) -> int:
        """Append `ids` and return the likeliest next token."""
        start, count = self.engine.length(self.slot), len(ids)
        out = self.engine.forward(
            Step(
                slots=(self.slot,),
                cu_seqlens=np.array([0, count], np.int64),
                input_ids=ids,
                position_ids=np.tile(np.arange(start, start + count), (3, 1)),
                visual_keys=() if keys is None else (keys,),
            )
        )
        assert np.isfinite(out.logits).all(), "logits are not finite"
        if keys is not None:
            assert 0 < float(np.sum(out.visual_mass[0])) < 1, "mass is no share"
        return int(out.logits[0].argmax())

    def generate(self, ids: list[int], decode: int, mass: bool) -> dict[str, Any]:
        """Times of the prefill and of `decode` steps; a prompt is prefilled once."""
        keys = VisualKeys(
            kv_index=np.arange(FIRST_VISUAL, FIRST_VISUAL + NUM_VISUAL),
            source=np.arange(NUM_VISUAL),
            num_visual=NUM_VISUAL,
        )
        if ids == self.prompt:
            self.engine.truncate(self.slot, len(ids))
        else:
            self.engine.truncate(self.slot, 0)
            start = time.perf_counter()
            self.first = self.step(np.array(ids, np.int64), None)
            self.prompt, self.prefill_s = ids, time.perf_counter() - start
        token = self.first
        steps: list[float] = []
        cpu = time.process_time()
        for _ in range(decode):
            start = time.perf_counter()
            token = self.step(np.array([token], np.int64), keys if mass else None)
            steps.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        return {"prefill_s": self.prefill_s, "decode_s": steps, "cpu_s": cpu}

    def reinject(self, count: int, context: int) -> dict[str, Any]:
        """Time of one `kv` re-injection of `count` tokens behind `context`."""
        self.engine.truncate(self.slot, context)
        start = time.perf_counter()
        self.engine.kv_reinject(self.slot, np.arange(FIRST_VISUAL, FIRST_VISUAL + count), 600)
        seconds = time.perf_counter() - start
        self.engine.truncate(self.slot, context)
        return {"reinject_s": seconds}

    def check(self, ids: list[int]) -> float:
        """Relative difference of logits after one prefill and after prefill plus one step.

        Only rounding differs, but int8 activations and random weights amplify it: between graphs
        and chunks that compute the same, 0.03 to 0.056 was measured on the 3B shape.
        """
        logits = []
        for cut in (len(ids), len(ids) - 1):
            self.engine.truncate(self.slot, 0)
            parts = [np.array(p, np.int64) for p in (ids[:cut], ids[cut:]) if p]
            for part in parts:
                start = self.engine.length(self.slot)
                out = self.engine.forward(
                    Step(
                        slots=(self.slot,),
                        cu_seqlens=np.array([0, len(part)], np.int64),
                        input_ids=part,
                        position_ids=np.tile(np.arange(start, start + len(part)), (3, 1)),
                    )
                )
            logits.append(out.logits[0])
        self.prompt = []
        return float(np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0]))


def serve(bundle: str, threads: str, kind: str) -> None:
    """Load, check, then answer requests until stdin ends."""
    decoder = Decoder(Path(bundle), int(threads), kind)
    difference = decoder.check(list(range(1000, 1064)))
    assert difference < 0.1, f"prefill and decode disagree by {difference:.3f}"
    hello = {"prefill_decode_difference": difference, "huge_page_bytes": decoder.huge_page_bytes}
    print(json.dumps({"ready": True, **hello}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "reinject" in request:
            answer = decoder.reinject(request["reinject"], request["context"])
        else:
            answer = decoder.generate(request["ids"], request["decode"], request["mass"])
        print(json.dumps({**answer, "memory": memory_bytes()}), flush=True)


def profile(bundle: str, threads: str, kind: str, context: str, decode: str) -> None:
    """Prefill once, decode, and print the medians over the decode steps."""
    ids = np.random.default_rng(0).integers(1000, NUM_PLAIN_TOKENS - 1000, int(context)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        decoder = Decoder(Path(bundle), int(threads), kind, Path(folder) / "profile")
        decoder.generate(ids, int(decode), kind == "mass")
        events = json.loads(decoder.engine.end_profile().read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    steps = [e for e in events if e["name"] == "model_run"][-int(decode) :]
    spent = [
        sum(
            k["dur"]
            for k in kernels
            if _in_attention(k["name"]) and 0 <= k["ts"] - s["ts"] < s["dur"]
        )
        for s in steps
    ]
    assert min(spent) > 0, "the profile names no attention"
    medians = {"attention_us": spent, "step_us": [s["dur"] for s in steps]}
    print(json.dumps({name: statistics.median(us) for name, us in medians.items()}), flush=True)


def _in_attention(kernel: str) -> bool:
    """Of the attention functions' bodies, or of what adds up their mass."""
    return (
        "RowAttention" in kernel or "CausalAttention" in kernel or kernel.startswith("visual_mass")
    )


if __name__ == "__main__":
    {"build": run_build, "serve": serve, "profile": profile}[sys.argv[1]](*sys.argv[2:])
