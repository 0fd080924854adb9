"""The floors, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks import roofline
from benchmarks.make_3b import shape_3b
from benchmarks.roofline import GPUS, Gpu, Work
from tests.cuda import emulated

T3, T7 = shape_3b().text, roofline.shape_7b().text
GPU = {g.name: g for g in GPUS}


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    gpu = Gpu(name="made up", bandwidth_gb_s=1000, tflops=100)
    assert Work(num_bytes=3e6, ops=1e8).floor_us(gpu) == pytest.approx(3)  # 3 MB at 1 MB/µs
    assert Work(num_bytes=3e6, ops=7e8).floor_us(gpu) == pytest.approx(7)  # 0.7 Gop at 0.1 Gop/µs


def test_decode_attention_of_4096_positions() -> None:
    work = roofline.attention(T3, 1, 4096, 1024, 16)
    # K and V: 4096 positions * 2 heads * 128 values * 2 bytes * 2 = 4 MiB;
    # q and out: 2 * 16 * 128 * 2 = 8192; the mass: 1024 * 12 = 12288.
    assert work.num_bytes == 4_194_304 + 8_192 + 12_288
    assert work.ops == 4 * 4096 * 16 * 128  # 33.6 Mop
    assert work.floor_us(GPU["L4"]) == pytest.approx(4_214_784 / 300e3)  # 14.0 µs, by memory


def test_a_chunk_sees_what_lies_before_it_and_itself_causally() -> None:
    work = roofline.attention(T3, 3, 10, 0, 16)
    assert work.ops == 4 * (8 + 9 + 10) * 16 * 128


def test_rows_of_codes_carry_their_scales() -> None:
    assert roofline.kv_row_bytes(T3, 16) == 2 * 2 * 256
    assert roofline.kv_row_bytes(T3, 8) == 2 * 2 * (128 + 4)


def test_rope_writes_a_token() -> None:
    work = roofline.rope_write_kv(T7, 1, 16)
    # q 28 * 128 in and out, k and v 2 * 4 * 128 in and out, of 2 bytes; 64 cos and 64 sin of 4.
    assert work.num_bytes == 2 * 3584 * 2 + 2 * 1024 * 2 + 512


def test_weights_of_the_published_shapes() -> None:
    # q, k, v: 2048 * 2560; out: 2048 * 2048; MLP: 3 * 2048 * 11008.
    weights_3b = 2048 * 2560 + 2048 * 2048 + 3 * 2048 * 11008
    assert roofline.layer_linears(T3, 1, 16).ops == 2 * weights_3b
    weights_7b = 3584 * 4608 + 3584 * 3584 + 3 * 3584 * 18944
    assert roofline.layer_linears(T7, 1, 16).ops == 2 * weights_7b
    step = roofline.forward(T7, 1, 1, num_visual=0, kv_bits=16, weight_bits=16, logits=True)
    billions = (28 * weights_7b + 3584 * 152064) / 1e9  # 7.07 without the embeddings
    assert step.num_bytes == pytest.approx(2e9 * billions, rel=1e-3)
    assert step.floor_us(GPU["H100 SXM"]) == pytest.approx(4221, rel=1e-3)


def test_kv_reinjection_moves_rows_of_every_layer_twice() -> None:
    work = roofline.kv_reinject(T3, 256, 16)
    assert work.num_bytes == 2 * 256 * 36 * 1024  # 18.9 MB
    assert work.floor_us(GPU["A100 80GB SXM"]) == pytest.approx(18.874368e6 / 2039e3)


def test_embedding_1024_tokens_is_bound_by_arithmetic_on_every_gpu() -> None:
    work = roofline.rows(shape_3b(), kv_len=4096, num_visual=1024, kv_bits=16, weight_bits=16)[
        "COPY of 1024, embed"
    ]
    for gpu in GPUS:
        assert work.floor_us(gpu) == work.ops / (gpu.tflops * 1e6)


def test_every_kernel_has_a_time_of_the_same_name() -> None:
    table = roofline.rows(shape_3b(), kv_len=4096, num_visual=1024, kv_bits=16, weight_bits=16)
    source = (emulated.CSRC / "tests" / "cuda" / "time_kernels.cpp").read_text()
    assert [n for n in roofline.kernels(table) if f'(timer, "{n}"' not in source] == []
    assert source.count('(timer, "') == len(roofline.kernels(table))


def test_a_mass_and_its_source_are_read_and_a_sum_updated() -> None:
    assert roofline.mass_add(1000).num_bytes == 28_000


def test_windows_cost_less_than_whole_images() -> None:
    v = shape_3b().vision
    windows, whole = (roofline.attention_vision(v, 4096, w) for w in (64, 4096))
    assert windows.num_bytes == whole.num_bytes == 4 * 4096 * 1280 * 2
    assert whole.ops == 64 * windows.ops == 4 * 4096 * 4096 * 1280


def test_the_command_prints_a_table_for_each_shape() -> None:
    done = CliRunner().invoke(roofline.main, ["--weight-bits", "4.5", "--kv-bits", "8"])
    assert done.exit_code == 0, done.output
    assert done.output.count("| decode step |") == 2
    assert all(gpu.name in done.output for gpu in GPUS)
