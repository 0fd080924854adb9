"""OpenVINO GenAI's side of `peers` (protocol: `peer_protocol`).

    python benchmarks/peer_openvino.py MODEL_DIR THREADS

The pipeline reports the time of the first token and the mean of the others.
"""

import importlib.metadata
import sys

from peer_protocol import pin, serve


def load(path, threads):
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipe = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)

    def answer(ids, decode):
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = decode + 1
        config.ignore_eos, config.do_sample = True, False
        prompt = np.array([ids], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(prompt), ov.Tensor(np.ones_like(prompt)))
        result = pipe.generate(inputs, config)
        metrics = result.perf_metrics
        return {
            "prefill_s": metrics.get_ttft().mean / 1e3,
            "decode_s": [metrics.get_tpot().mean / 1e3] * decode,
            "tokens": [int(token) for token in result.tokens[0]],
        }

    return answer


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    pin(threads)
    version = importlib.metadata.version("openvino-genai")
    serve(lambda: load(path, threads), lambda: f"openvino-genai {version}")


if __name__ == "__main__":
    main()
