"""llama.cpp's side of `peers` (protocol: `peer_protocol`).

python benchmarks/peer_llamacpp.py MODEL.gguf THREADS
"""

import ctypes
import importlib.metadata
import sys

from peer_protocol import VOCAB_SIZE, pin, serve, steps

NUM_CTX, NUM_BATCH, NUM_UBATCH = 2304, 2048, 512


def load(path, threads):
    import llama_cpp as lib
    import numpy as np

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    assert model, f"{path}: not loaded"
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = NUM_CTX, NUM_BATCH, NUM_UBATCH
    options.n_threads = options.n_threads_batch = threads
    context = lib.llama_init_from_model(model, options)
    assert context, "no context"
    memory = lib.llama_get_memory(context)

    def run(ids):
        array = (lib.llama_token * len(ids))(*ids)
        code = lib.llama_decode(context, lib.llama_batch_get_one(array, len(ids)))
        assert code == 0, f"llama_decode: {code}"
        row = ctypes.cast(lib.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(row, (VOCAB_SIZE,))
        assert np.isfinite(logits).all(), "logits are not finite"
        return int(logits.argmax())

    def answer(ids, decode):
        lib.llama_memory_clear(memory, True)
        return steps(run, lambda token: run([token]), ids, decode)

    return answer


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    pin(threads)
    version = importlib.metadata.version("llama-cpp-python")
    serve(lambda: load(path, threads), lambda: f"llama-cpp-python {version}")


if __name__ == "__main__":
    main()
