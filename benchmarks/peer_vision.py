"""The vision tower alone, of one side of `vision_speed`.

    python benchmarks/peer_vision.py ours BUNDLE THREADS
    python benchmarks/peer_vision.py float32|bfloat16 CKPT THREADS   # transformers, sdpa

{"pixels": FILE, "grid": [1, H, W], "embeds": FILE} reads patches (H*W, C) from one .npy file,
writes the visual embeddings to another, and is answered by {"seconds"}.
"""

import importlib.metadata
import sys
import time
from pathlib import Path

from peer_protocol import pin, serve


def load_ours(path, threads):
    from la_trt.engines.native import NativeEngine
    from la_trt.files.bundle import open_bundle

    engine = NativeEngine(open_bundle(Path(path), verify=False), threads=threads)
    return engine.vision


def load_transformers(path, threads, dtype):
    import numpy as np
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel as Tower,
    )

    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(path).vision_config
    config._attn_implementation = "sdpa"
    dtype = getattr(torch, dtype)
    tower = Tower(config).to(dtype).eval()
    with safe_open(f"{path}/model.safetensors", "pt") as file:
        names = [n for n in file.keys() if n.startswith("visual.")]  # noqa: SIM118 - no mapping
        tower.load_state_dict({n.removeprefix("visual."): file.get_tensor(n) for n in names})

    @torch.inference_mode()
    def run(pixels, grid):
        out = tower(torch.from_numpy(pixels).to(dtype), grid_thw=torch.from_numpy(grid))
        # Newer versions return the embeddings before and after they are merged.
        embeds = out.pooler_output if hasattr(out, "pooler_output") else out
        return embeds.float().numpy().astype(np.float32)

    return run


def load(kind, path, threads):
    import numpy as np

    ours = kind == "ours"
    run = load_ours(path, threads) if ours else load_transformers(path, threads, kind)

    def answer(pixels, grid, embeds):
        values = np.load(pixels)
        start = time.perf_counter()
        out = run(values, np.array([grid], np.int64))
        seconds = time.perf_counter() - start
        assert np.isfinite(out).all(), "embeddings are not finite"
        np.save(embeds, out)
        return {"seconds": seconds}

    return answer


def main():
    kind, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pin(threads)
    name = "la-trt" if kind == "ours" else "transformers"
    serve(lambda: load(kind, path, threads), lambda: f"{name} {importlib.metadata.version(name)}")


if __name__ == "__main__":
    main()
