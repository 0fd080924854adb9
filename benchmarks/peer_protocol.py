"""What every engine of `peers` is asked, line by line over stdin and stdout. Standard library only.

A worker prints {"ready", "version", "load_s"} once it has loaded, then answers each line
{"ids", "decode"} with {"prefill_s", "decode_s": [...], "tokens": [...]}: the prompt from scratch,
the first token with it, then `decode` greedy steps of one token, the end of text ignored. Where
an engine times no single steps, all of `decode_s` are their mean. Every answer has
"peak_rss_bytes", mapped files included.
"""

import json
import os
import sys
import time

VOCAB_SIZE = 151936


def pin(threads):
    """Run on the first `threads` CPUs that this process may use; to call before any import."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)


def peak_rss_bytes():
    """VmHWM of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def steps(prefill, step, ids, decode):
    """The answer of an engine that runs token by token.

    `prefill(ids)` and `step(token)` return the greedy next token.
    """
    start = time.perf_counter()
    token = prefill(ids)
    prefill_s = time.perf_counter() - start
    tokens, decode_s = [token], []
    for _ in range(decode):
        start = time.perf_counter()
        token = step(token)
        decode_s.append(time.perf_counter() - start)
        tokens.append(token)
    return {"prefill_s": prefill_s, "decode_s": decode_s, "tokens": tokens}


def serve(load, version):
    """Load, say so, answer until stdin ends. `load()` returns answer(**request)."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not disturb the answers
    start = time.perf_counter()
    answer = load()
    hello = {"ready": True, "version": version(), "load_s": time.perf_counter() - start}
    print(json.dumps(hello), file=out, flush=True)
    for line in sys.stdin:
        result = answer(**json.loads(line))
        result["peak_rss_bytes"] = peak_rss_bytes()
        print(json.dumps(result), file=out, flush=True)
