"""`la-trt info`: what a checkpoint or bundle is, and how an image becomes visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.options import HEADER_LIMIT, IMAGE, IMAGE_LIMITS, PATH, limit_options
from la_trt.cli.terminal import print_json
from la_trt.errors import CheckpointError, UsageError
from la_trt.limits import Limits


@click.command(name="info")
@click.argument("path", type=PATH, required=False)
@click.option(
    "--preprocess",
    "image",
    type=IMAGE,
    metavar="IMAGE",
    help="Say how this image is resized and cut, by PATH's settings or Qwen2.5-VL's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@limit_options(IMAGE_LIMITS | HEADER_LIMIT)
@debug_option
def command(path: Path | None, image: Path | None, as_json: bool, limits: Limits) -> None:
    """Say what a checkpoint or bundle is, or how an image is cut.

    PATH is a checkpoint directory or a bundle. Weights are not searched for NaN here, and a
    bundle's files are checked by size, not by hash: building and running do both.
    """
    if path is None and image is None:
        raise UsageError("nothing to look at\ngive a PATH, or an image with --preprocess IMAGE")
    facts: dict[str, Any] = {}
    if path is not None:
        facts |= _describe(path, limits)
    if image is not None:
        facts["preprocess"] = _preprocess(image, path, limits)
    if as_json:
        print_json(facts)
    else:
        for line in _lines(facts):
            click.echo(line)


def _describe(path: Path, limits: Limits) -> dict[str, Any]:
    if (path / "bundle.json").exists():
        return _bundle(path)
    if (path / "config.json").exists():
        return _checkpoint(path, limits)
    what = "no such directory" if not path.exists() else "neither a checkpoint nor a bundle"
    raise CheckpointError(
        f"{path}: {what}\ngive a directory with a config.json or a bundle.json",
        name="E_UNKNOWN_PATH",
    )


def _checkpoint(path: Path, limits: Limits) -> dict[str, Any]:
    from la_trt.files.checkpoint import open_checkpoint
    from la_trt.processor.tokenizer import Vocabulary
    from la_trt.tags import ALL_TAGS

    checkpoint = open_checkpoint(
        path, finite="never", max_header_bytes=limits.max_safetensors_header_bytes
    )
    names = checkpoint.names()
    vocabulary = Vocabulary.from_file(path / "tokenizer.json")
    return {
        "kind": "checkpoint",
        "path": str(path),
        "tensors": len(names),
        "parameters": sum(_size(checkpoint.shape(name)) for name in names),
        "weight_bytes": checkpoint.num_bytes(),
        "dtypes": sorted({str(checkpoint.dtype(name)) for name in names}),
        "tags": {tag: vocabulary.token_id(tag) for tag in ALL_TAGS},
        "config": checkpoint.config.to_dict(),
        "files": _files(path),
    }


def _bundle(path: Path) -> dict[str, Any]:
    from la_trt.files.bundle import open_bundle
    from la_trt.tags import ALL_TAGS

    bundle = open_bundle(path, verify=False)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "path": str(path),
        "la_trt_version": manifest.la_trt_version,
        "digest": manifest.digest,
        "quant": manifest.quant,
        "max_model_len": manifest.limits.max_model_len,
        "min_pixels": manifest.limits.min_pixels,
        "max_pixels": manifest.limits.max_pixels,
        "request": dict(manifest.request),
        "tags": {tag: manifest.tags.get(tag) for tag in ALL_TAGS},
        "config": manifest.config.to_dict(),
        "files": {entry.path: entry.size for entry in manifest.files},
    }


def _preprocess(image: Path, path: Path | None, limits: Limits) -> dict[str, Any]:
    from la_trt.processor.features import ImageConfig, preprocess
    from la_trt.processor.image import load_image

    config = ImageConfig() if path is None else ImageConfig.from_directory(path)
    features = preprocess(load_image(image, limits), config)
    grid = [int(n) for n in features.grid_thw]
    return {
        "image": str(image),
        "settings": "Qwen2.5-VL's own" if path is None else str(path),
        "source_size": {"height": features.source_size[0], "width": features.source_size[1]},
        "resized_size": {"height": features.resized_size[0], "width": features.resized_size[1]},
        "grid_thw": grid,
        "patches": grid[0] * grid[1] * grid[2],
        "visual_tokens": features.num_visual_tokens,
        "min_pixels": config.min_pixels,
        "max_pixels": config.max_pixels,
    }


def _files(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(path.iterdir()) if p.is_file()}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _lines(facts: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    if "kind" in facts:
        rows += _model_rows(facts)
    if "preprocess" in facts:
        rows += _image_rows(facts["preprocess"])
    return [f"{name:16} {value}" for name, value in rows]


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, vision = facts["config"], facts["config"]["vision_config"]
    rows = [(facts["kind"], facts["path"])]
    if facts["kind"] == "checkpoint":
        rows += [
            ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors"),
            ("weights", f"{_bytes(facts['weight_bytes'])}, {', '.join(facts['dtypes'])}"),
        ]
    else:
        rows += [
            ("built by", f"la-trt {facts['la_trt_version']}, digest {facts['digest'][:16]}"),
            ("quant", facts["quant"]),
            ("asked for", _asked(facts["request"])),
            ("context", f"{facts['max_model_len']} tokens"),
            ("image pixels", f"{facts['min_pixels']} to {facts['max_pixels']}"),
        ]
    present = [tag for tag, index in facts["tags"].items() if index is not None]
    missing = [tag for tag, index in facts["tags"].items() if index is None]
    rows += [
        (
            "decoder",
            f"{config['num_hidden_layers']} layers of {config['hidden_size']}, "
            f"{config['num_attention_heads']} / {config['num_key_value_heads']} heads, "
            f"vocabulary {config['vocab_size']}, "
            f"{'tied' if config['tie_word_embeddings'] else 'separate'} head",
        ),
        (
            "vision",
            f"{vision['depth']} blocks of {vision['hidden_size']}, {vision['num_heads']} heads, "
            f"patches of {vision['patch_size']} px, windows of {vision['window_size']} px",
        ),
        ("tags", f"{len(present)} of {len(facts['tags'])} are tokens{_listed(missing)}"),
        ("looks again", _looks_again(facts["tags"])),
    ]
    rows += [("file", f"{name}  {_bytes(size)}") for name, size in facts["files"].items()]
    return rows


def _asked(request: dict[str, Any]) -> str:
    """What the build was told, in words; what was left to the checkpoint does not appear."""
    unused = "block_size" if request.get("quant") == "none" else ""
    told = {name: v for name, v in request.items() if v is not None and name != unused}
    values = {
        name: " and ".join(map(str, v)) if isinstance(v, list) else str(v)
        for name, v in told.items()
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _listed(missing: list[str]) -> str:
    return f", missing: {' '.join(missing)}" if missing else ""


def _looks_again(tags: dict[str, int | None]) -> str:
    if tags["<REFLECTION>"] is None:
        return "no: the vocabulary has no <REFLECTION>, so policies have nothing to act on"
    return "yes, at each <REFLECTION>"


def _image_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    source, resized, grid = facts["source_size"], facts["resized_size"], facts["grid_thw"]
    return [
        ("image", facts["image"]),
        ("settings", f"{facts['settings']}, {facts['min_pixels']} to {facts['max_pixels']} pixels"),
        ("stored", f"{source['width']} x {source['height']} px (width x height, upright)"),
        ("resized", f"{resized['width']} x {resized['height']} px"),
        ("grid", f"t {grid[0]}, h {grid[1]}, w {grid[2]} ({facts['patches']} patches)"),
        ("visual tokens", str(facts["visual_tokens"])),
    ]


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
