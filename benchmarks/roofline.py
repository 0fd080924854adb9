"""What a GPU cannot beat: bytes, operations and the time floor of each kernel and step.

    python -m benchmarks.roofline [--kv-len 4096] [--num-visual 1024] [--weight-bits 16]

Arithmetic on published peak figures; nothing here was measured. The floor of a piece of work is
the larger of its bytes over the memory bandwidth and its operations over the dense tensor-core
rate. Bytes are those that must cross the memory bus at least once: a kernel's inputs and outputs,
a step's weights and KV cache. Scratch memory and launches (microseconds each) come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import click

from benchmarks.make_3b import shape_3b
from la_trt.config import ModelConfig, TextConfig, VisionConfig

ACT_BYTES = 2
VOCAB_7B = 152064


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peak figures of the vendor's data sheets: dense 16-bit products summed in float32."""

    name: str
    bandwidth_gb_s: float
    tflops: float


GPUS = (
    Gpu(name="A100 80GB SXM", bandwidth_gb_s=2039, tflops=312),
    Gpu(name="L4", bandwidth_gb_s=300, tflops=121),
    Gpu(name="H100 SXM", bandwidth_gb_s=3350, tflops=989),
    Gpu(name="RTX 4090", bandwidth_gb_s=1008, tflops=165.2),
    Gpu(name="RTX 5090", bandwidth_gb_s=1792, tflops=209.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Bytes over the memory bus and arithmetic operations (a multiply-add is two)."""

    num_bytes: float
    ops: float

    def __add__(self, other: Work) -> Work:
        return Work(num_bytes=self.num_bytes + other.num_bytes, ops=self.ops + other.ops)

    def times(self, count: int) -> Work:
        return Work(num_bytes=self.num_bytes * count, ops=self.ops * count)

    def floor_us(self, gpu: Gpu) -> float:
        """No run on this GPU takes fewer microseconds."""
        return max(self.num_bytes / (gpu.bandwidth_gb_s * 1e3), self.ops / (gpu.tflops * 1e6))


def shape_7b() -> ModelConfig:
    """The published 7B configuration."""
    small = shape_3b()
    return ModelConfig(
        text=TextConfig(
            vocab_size=VOCAB_7B,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            head_dim=128,
            mrope_section=(16, 24, 24),
        ),
        vision=VisionConfig(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584
        ),
        image_token_id=small.image_token_id,
        video_token_id=small.video_token_id,
        vision_start_token_id=small.vision_start_token_id,
        vision_end_token_id=small.vision_end_token_id,
        eos_token_ids=small.eos_token_ids,
    )


def kv_row_bytes(t: TextConfig, kv_bits: int) -> int:
    """One position of one layer, K and V of all KV heads; 8-bit rows carry a float32 scale."""
    scale = 4 if kv_bits == 8 else 0
    return 2 * t.num_key_value_heads * (t.head_dim * kv_bits // 8 + scale)


def attention(t: TextConfig, num_tokens: int, kv_len: int, num_visual: int, kv_bits: int) -> Work:
    """Causal attention of the last `num_tokens` of `kv_len` positions, one layer, with the mass."""
    past = kv_len - num_tokens
    pairs = num_tokens * past + num_tokens * (num_tokens + 1) // 2
    query = num_tokens * t.num_attention_heads * t.head_dim * ACT_BYTES
    mass = num_visual * (8 + 4)  # an index in, a float out
    return Work(
        num_bytes=kv_len * kv_row_bytes(t, kv_bits) + 2 * query + mass,
        ops=4 * pairs * t.num_attention_heads * t.head_dim,
    )


def rope_write_kv(t: TextConfig, num_tokens: int, kv_bits: int) -> Work:
    """q in and out, k and v in, a cache row out, cos and sin in float32; one layer."""
    q, kv = t.num_attention_heads * t.head_dim, 2 * t.num_key_value_heads * t.head_dim
    a_token = (2 * q + kv) * ACT_BYTES + kv_row_bytes(t, kv_bits) + t.head_dim * 4
    turned = t.num_attention_heads + t.num_key_value_heads
    return Work(num_bytes=num_tokens * a_token, ops=num_tokens * 3 * turned * t.head_dim)


def kv_reinject(t: TextConfig, num_tokens: int, kv_bits: int) -> Work:
    """Rows read and written in every layer, keys rotated."""
    rows = num_tokens * t.num_hidden_layers
    turned = t.num_key_value_heads * t.head_dim
    return Work(num_bytes=2 * rows * kv_row_bytes(t, kv_bits), ops=3 * rows * turned)


def route_select(num_visual: int, count: int) -> Work:
    """Float64 masses in, indices out."""
    return Work(num_bytes=8 * num_visual + 8 * count, ops=num_visual)


def mass_add(num_visual: int) -> Work:
    """Float32 masses and their sources in, float64 sums in and out."""
    return Work(num_bytes=(4 + 8 + 2 * 8) * num_visual, ops=2 * num_visual)


def sample(vocab_size: int) -> Work:
    """Float32 logits in."""
    return Work(num_bytes=4 * vocab_size, ops=vocab_size)


def attention_vision(v: VisionConfig, num_patches: int, window: int) -> Work:
    """One block over windows of `window` patches: q, k, v in and the result out."""
    row = v.num_heads * v.head_dim
    return Work(num_bytes=4 * num_patches * row * ACT_BYTES, ops=4 * num_patches * window * row)


def linear(num_tokens: int, num_in: int, num_out: int, weight_bits: float) -> Work:
    """Weights once; activations may stay on the chip."""
    weights = num_in * num_out
    return Work(num_bytes=weights * weight_bits / 8, ops=2 * num_tokens * weights)


def layer_linears(t: TextConfig, num_tokens: int, weight_bits: float) -> Work:
    """q, k, v and output projections and the gated MLP of one decoder layer."""
    q, kv = t.num_attention_heads * t.head_dim, 2 * t.num_key_value_heads * t.head_dim
    return (
        linear(num_tokens, t.hidden_size, q + kv, weight_bits)
        + linear(num_tokens, q, t.hidden_size, weight_bits)
        + linear(num_tokens, t.hidden_size, 2 * t.intermediate_size, weight_bits)
        + linear(num_tokens, t.intermediate_size, t.hidden_size, weight_bits)
    )


def forward(
    t: TextConfig,
    num_tokens: int,
    kv_len: int,
    *,
    num_visual: int,
    kv_bits: int,
    weight_bits: float,
    logits: bool,
) -> Work:
    """A forward pass of one sequence's last `num_tokens` of `kv_len` positions.

    Weights cross the bus, and every row of the cache, read or written; activations need not.
    """
    linears = layer_linears(t, num_tokens, weight_bits)
    on_chip = rope_write_kv(t, num_tokens, kv_bits) + attention(
        t, num_tokens, kv_len, num_visual, kv_bits
    )
    layer = Work(
        num_bytes=linears.num_bytes + kv_len * kv_row_bytes(t, kv_bits),
        ops=linears.ops + on_chip.ops,
    )
    work = layer.times(t.num_hidden_layers)
    return work + linear(1, t.hidden_size, t.vocab_size, weight_bits) if logits else work


def rows(
    config: ModelConfig, *, kv_len: int, num_visual: int, kv_bits: int, weight_bits: float
) -> dict[str, Work]:
    """The table's rows: kernels of one layer, then whole steps."""
    t = config.text
    table = {
        "attention_decode, one layer": attention(t, 1, kv_len, num_visual, kv_bits),
        "attention_decode without mass": attention(t, 1, kv_len, 0, kv_bits),
        "attention_prefill of 1024, one layer": attention(
            t, 1024, kv_len + 1024, num_visual, kv_bits
        ),
        "rope_write_kv, one token and layer": rope_write_kv(t, 1, kv_bits),
        "rope_write_kv of 1024, one layer": rope_write_kv(t, 1024, kv_bits),
        f"route_select, half of {num_visual}": route_select(num_visual, num_visual // 2),
        f"mass_add of {num_visual}": mass_add(num_visual),
        "attention_vision, 4096 patches by 64": attention_vision(config.vision, 4096, 64),
        "attention_vision, 4096 patches whole": attention_vision(config.vision, 4096, 4096),
        "sample": sample(t.vocab_size),
        "decode step": forward(
            t,
            1,
            kv_len + 1,
            num_visual=num_visual,
            kv_bits=kv_bits,
            weight_bits=weight_bits,
            logits=True,
        ),
    }
    for name, count in (("ROUTE", 256), ("COPY", 1024)):
        table[f"{name} of {count}, embed"] = forward(
            t,
            count,
            kv_len + count,
            num_visual=0,
            kv_bits=kv_bits,
            weight_bits=weight_bits,
            logits=False,
        )
        table[f"{name} of {count}, kv"] = kv_reinject(t, count, kv_bits)
    return table


def kernels(table: dict[str, Work]) -> dict[str, Work]:
    """The rows that are one launch of a kernel, not a step."""
    return {n: w for n, w in table.items() if n != "decode step" and not n.endswith(", embed")}


def markdown(title: str, table: dict[str, Work]) -> str:
    """A Markdown table of megabytes, gigaoperations and the floor in microseconds."""
    lines = [f"### {title}", ""]
    lines.append("| | MB | Gop | " + " | ".join(f"{g.name}, µs" for g in GPUS) + " |")
    lines.append("| --- |" + " ---: |" * (2 + len(GPUS)))
    for name, work in table.items():
        floors = " | ".join(f"{work.floor_us(g):,.1f}" for g in GPUS)
        sizes = f"{work.num_bytes / 1e6:,.2f} | {work.ops / 1e9:,.2f}"
        lines.append(f"| {name} | {sizes} | {floors} |")
    return "\n".join(lines)


@click.command()
@click.option("--kv-len", default=4096, show_default=True, help="Positions in the cache before.")
@click.option("--num-visual", default=1024, show_default=True, help="Visual keys with a mass.")
@click.option("--kv-bits", type=click.Choice(["8", "16"]), default="16", show_default=True)
@click.option("--weight-bits", default=16.0, show_default=True, help="4.5: int4 in blocks of 32.")
def main(kv_len: int, num_visual: int, kv_bits: str, weight_bits: float) -> None:
    """Print the floors of the 3B and the 7B shape on every GPU of the list."""
    for name, config in (("3B", shape_3b()), ("7B", shape_7b())):
        table = rows(
            config,
            kv_len=kv_len,
            num_visual=num_visual,
            kv_bits=int(kv_bits),
            weight_bits=weight_bits,
        )
        title = (
            f"{name}: {kv_len} positions, {num_visual} visual keys, {kv_bits}-bit KV, "
            f"{weight_bits:g}-bit weights"
        )
        click.echo(markdown(title, table) + "\n")


if __name__ == "__main__":
    main()
