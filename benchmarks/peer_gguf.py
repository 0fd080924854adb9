"""A Qwen2 checkpoint as a quantised GGUF file, by the `gguf` package and llama.cpp's quantiser.

    python benchmarks/peer_gguf.py CKPT OUTPUT q4_0|q8_0

Runs in llama.cpp's environment. Every matrix is quantised, the head's too ("pure").
"""

import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
KINDS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def renamed(name):
    """llama.cpp's name of a checkpoint tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.{kind}"


def tensors(path):
    """(name, uint16 bits of bf16) of every tensor of a safetensors file, mapped."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{name}: expected BF16, got {entry['dtype']}"
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        yield name, data[start:stop].view(np.uint16).reshape(entry["shape"])


def write_bf16(ckpt, path):
    """The whole model in bf16, its vectors in float32."""
    config = json.loads((ckpt / "config.json").read_text())
    tokenizer = json.loads((ckpt / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens, kinds = [None] * config["vocab_size"], [1] * config["vocab_size"]
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    for name, bits in tensors(ckpt / "model.safetensors"):
        if bits.ndim == 1:
            writer.add_tensor(renamed(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            rows, width = bits.shape
            writer.add_tensor(
                renamed(name),
                bits.view(np.uint8).reshape(rows, 2 * width),
                raw_shape=(rows, 2 * width),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    ckpt, output, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    whole = output.parent / "bf16.gguf"
    if not whole.exists():
        staging = whole.with_suffix(".staging")
        write_bf16(ckpt, staging)
        staging.rename(whole)
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype, options.pure = 2, KINDS[kind], True
    code = llama_cpp.llama_model_quantize(str(whole).encode(), str(output).encode(), options)
    sys.exit(code)


if __name__ == "__main__":
    main()
