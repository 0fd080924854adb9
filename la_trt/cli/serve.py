"""`la-trt serve`: an OpenAI-compatible server on 127.0.0.1."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from la_trt.cli.app import INTERRUPTED, debug_option
from la_trt.cli.options import (
    IMAGE_LIMITS,
    PATH,
    STOP_LIMITS,
    FiniteRange,
    limit_options,
    source_options,
    speculate_option,
)
from la_trt.cli.source import Source
from la_trt.cli.terminal import note
from la_trt.errors import MachineError, UsageError
from la_trt.limits import DEFAULT_MAX_TOKENS, MIB, Limits
from la_trt.reattention.policy import PRESETS
from la_trt.serve.settings import MIN_API_KEY_CHARS, is_api_key

_KEY_VARIABLE = "LA_TRT_API_KEY"
_REFLECTIONS = {"max_reflections": "Reflections with visual tokens that a request may ask for."}
_SWITCH_S = 0.0005
_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.IntRange(min=0)
_SECONDS = FiniteRange(min=0, min_open=True)


@click.command(name="serve")
@source_options
@speculate_option
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, metavar="N", help="0: a free one."
)
@click.option(
    "--served-model-name",
    metavar="NAME",
    help="What clients call the model.  [default: the name of its directory]",
)
@click.option(
    "--api-key-file",
    type=PATH,
    metavar="FILE",
    help=f"Keys that let clients in, one a line, each of {MIN_API_KEY_CHARS} ASCII characters or "
    f"more; so does the environment variable {_KEY_VARIABLE}. Without either, everyone is let in.",
)
@click.option(
    "--policy",
    type=click.Choice(PRESETS),
    default="copy",
    help="Policy of requests that name none.",
)
@click.option(
    "--max-batch", type=_POSITIVE, default=8, metavar="N", help="Sequences that run at once."
)
@click.option(
    "--max-waiting",
    type=_NOT_NEGATIVE,
    default=64,
    metavar="N",
    help="Requests that may wait besides; the next gets a 429.",
)
@click.option(
    "--prefill-chunk",
    type=_POSITIVE,
    default=128,
    metavar="N",
    help="Prompt tokens in one step, of all requests together: smaller steps let decoding and "
    "short prompts through sooner.",
)
@click.option(
    "--default-max-tokens",
    type=_POSITIVE,
    default=DEFAULT_MAX_TOKENS,
    metavar="N",
    help="Tokens of an answer whose request names no limit.",
)
@click.option(
    "--vision-cache-mib",
    type=_NOT_NEGATIVE,
    default=256,
    metavar="N",
    help="Memory for the embeddings of images that may come again; 0 keeps none.",
)
@click.option(
    "--prefix-cache/--no-prefix-cache",
    default=True,
    help="Keep the KV of finished prompts for others that begin alike.",
)
@click.option(
    "--drain-seconds",
    type=FiniteRange(min=0),
    default=30.0,
    metavar="S",
    help="Time that running requests get after SIGTERM; a second signal stops at once.",
)
@click.option(
    "--allow-image-host",
    "image_hosts",
    multiple=True,
    metavar="HOST",
    help="Exact host name that image URLs may name; repeatable. None by default.",
)
@click.option(
    "--allow-local-images",
    "local_root",
    type=PATH,
    metavar="DIR",
    help="Directory below which file:// URLs may name images. None by default.",
)
@click.option(
    "--max-body-bytes", type=_POSITIVE, default=64 * MIB, metavar="N", help="Of a request."
)
@click.option(
    "--max-header-bytes", type=_POSITIVE, default=16 << 10, metavar="N", help="Of a request."
)
@click.option(
    "--max-json-depth", type=_POSITIVE, default=100, metavar="N", help="Levels of nesting."
)
@click.option(
    "--body-timeout",
    "body_timeout_s",
    type=_SECONDS,
    default=30.0,
    metavar="S",
    help="Seconds within which a body must arrive.",
)
@click.option(
    "--header-timeout",
    "header_timeout_s",
    type=_SECONDS,
    default=10.0,
    metavar="S",
    help="Seconds within which headers must arrive.",
)
@click.option("--max-n", type=_POSITIVE, default=8, metavar="N", help="Answers to a prompt.")
@click.option(
    "--max-top-logprobs",
    type=_POSITIVE,
    default=20,
    metavar="N",
    help="Log-probabilities a token.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Least level of the JSON lines on stderr. They never hold prompts, images or answers.",
)
@limit_options(IMAGE_LIMITS | STOP_LIMITS | _REFLECTIONS)
@debug_option
def command(
    source: Source,
    speculate: int,
    max_batch: int,
    log_level: str,
    limits: Limits,
    **flags: Any,
) -> None:
    """Serve a model over HTTP, as the OpenAI API has it.

    Chat and text completions, streamed or whole, with images; /metrics for Prometheus. SIGTERM
    drains: running requests end, new ones are refused, then the exit code is 0.
    """
    try:
        from la_trt.serve.logs import open_log
        from la_trt.serve.server import Server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("la_trt"):
            raise
        raise MachineError(
            f"the server needs {error.name}, which is not installed\ninstall la-trt[serve]",
            name="E_NO_SERVE",
        ) from None
    source = replace(source, max_batch=max_batch, speculate=speculate)
    settings = _settings(source, **flags)
    open_log(log_level)
    # The engine's thread takes over from the one that answers soon after its kernels return.
    sys.setswitchinterval(_SWITCH_S)
    server = Server(settings, lambda: source.open(limits))
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    note(f"la-trt: serving {settings.model_name} on http://{shown}:{server.port}/v1")
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.api_keys:
        print(
            f"la-trt: warning: {settings.host} may be reached by others, and no API key is set",
            file=sys.stderr,
        )
    server.run()
    if server.loading:
        # Stopped before its model was there: what loads it cannot be told to stop.
        if server.interrupted:
            print("la-trt: interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(INTERRUPTED if server.interrupted else 0)
    if server.interrupted:
        raise KeyboardInterrupt


def _settings(
    source: Source,
    *,
    served_model_name: str | None,
    api_key_file: Path | None,
    vision_cache_mib: int,
    drain_seconds: float,
    image_hosts: tuple[str, ...],
    local_root: Path | None,
    **flags: Any,
) -> Any:
    from la_trt.serve.settings import HttpLimits, ImageAccess, ServeSettings

    of_http = (
        "max_body_bytes",
        "max_header_bytes",
        "max_json_depth",
        "body_timeout_s",
        "header_timeout_s",
        "max_n",
        "max_top_logprobs",
    )
    http = HttpLimits(**{name: flags.pop(name) for name in of_http})
    directory = source.engine or source.ckpt
    if served_model_name is None:
        served_model_name = directory.resolve().name if directory else "la-trt-tiny"
    return ServeSettings(
        model_name=served_model_name,
        api_keys=_keys(api_key_file),
        vision_cache_bytes=vision_cache_mib * MIB,
        drain_s=drain_seconds,
        http=http,
        images=ImageAccess(hosts=image_hosts, local_root=local_root),
        **flags,
    )


def _keys(path: Path | None) -> tuple[str, ...]:
    """The keys of the environment and the file. Raises UsageError, which says where one is bad."""
    found = {_KEY_VARIABLE: os.environ.get(_KEY_VARIABLE, "")}
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
            raise UsageError(
                f"--api-key-file {path}: cannot be read ({why})\nname a file with a key a line"
            ) from None
        if not any(map(str.strip, lines)):
            raise UsageError(f"--api-key-file {path}: holds no key")
        found |= {f"{path} line {n}": line.strip() for n, line in enumerate(lines, 1)}
    for where, key in found.items():
        if key and not is_api_key(key):
            raise UsageError(
                f"{where}: expected an API key of at least {MIN_API_KEY_CHARS} ASCII characters"
            )
    return tuple(key for key in found.values() if key)
