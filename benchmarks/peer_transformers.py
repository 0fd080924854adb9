"""transformers' side of `peers` (protocol: `peer_protocol`), and the reference of its check.

    python benchmarks/peer_transformers.py CKPT THREADS float32|bfloat16

Attention by sdpa. {"ids", "top": N} is answered by {"top"}: the N likeliest next tokens,
likeliest first.
"""

import importlib.metadata
import sys

from peer_protocol import pin, serve, steps


def load(path, threads, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    state = {}

    @torch.inference_mode()
    def run(ids):
        out = model(
            input_ids=torch.tensor([ids]),
            past_key_values=state.get("cache"),
            use_cache=True,
            logits_to_keep=1,
        )
        state["cache"] = out.past_key_values
        logits = out.logits[0, -1].float()
        assert torch.isfinite(logits).all(), "logits are not finite"
        return logits

    def answer(ids, decode=0, top=0):
        state.clear()
        if top:
            return {"top": run(ids).topk(top).indices.tolist()}
        return steps(
            lambda prompt: int(run(prompt).argmax()),
            lambda token: int(run([token]).argmax()),
            ids,
            decode,
        )

    return answer


def main():
    path, threads, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    pin(threads)
    names = ("transformers", "torch")
    text = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    serve(lambda: load(path, threads, dtype), lambda: text)


if __name__ == "__main__":
    main()
