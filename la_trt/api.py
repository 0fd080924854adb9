"""The Python entry: open a bundle or a checkpoint, ask about images.

from la_trt import LookAgain

model = LookAgain("bundle")
result = model.generate([Path("photo.jpg")], "How many red circles are there?")
for event in model.stream([Path("photo.jpg")], "How many red circles are there?"):
    ...
result = await model.agenerate([Path("photo.jpg")], "How many red circles are there?")
async for event in model.astream([Path("photo.jpg")], "How many red circles are there?"):
    ...
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from la_trt.aio import iterate
from la_trt.config import ModelConfig
from la_trt.engines.base import Engine
from la_trt.errors import CheckpointError, MachineError, UsageError
from la_trt.events import DoneEvent, Event, InjectKind, Result
from la_trt.files.checkpoint import safe_file
from la_trt.files.strict_json import parse_json, show
from la_trt.limits import DEFAULT_MAX_TOKENS, MAX_THREADS, Limits
from la_trt.options import GenerationOptions
from la_trt.processor.image import ImageSource
from la_trt.processor.prompt import Message, Processor
from la_trt.processor.types import Prompt
from la_trt.reattention.policy import Policy, resolve_policy
from la_trt.sampling import SamplingParams
from la_trt.session import DEFAULT_PREFILL_CHUNK, Session

Backend = Literal["auto", "onnx", "native", "tensorrt"]
T = TypeVar("T")
_ONNX_ALONE = ("mass", "huge_pages")
_MAX_CONFIG_BYTES = 1 << 20


def make_options(
    *,
    policy: str | Path | Policy = "copy",
    inject: InjectKind | None = None,
    route_percent: float | None = None,
    max_reflections: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    num_samples: int = 1,
    forced: Sequence[int] = (),
    masses: bool = False,
) -> GenerationOptions:
    """All settings of a generation by their flat names, as on the command line.

    `policy`: a preset's name, a YAML file or a Policy; `inject`, `route_percent` and
    `max_reflections` replace its settings (UserWarning where that has no effect). Raises
    UsageError naming the setting.
    """
    return GenerationOptions(
        policy=resolve_policy(
            policy,
            inject=inject,
            route_percent=route_percent,
            max_reflections=max_reflections,
        ),
        sampling=SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ),
        max_tokens=max_tokens,
        stop=(stop,) if isinstance(stop, str) else _several("stop", stop, "strings"),
        stop_token_ids=_several("stop_token_ids", stop_token_ids, "token ids"),
        ignore_eos=ignore_eos,
        num_samples=num_samples,
        forced=_several("forced", forced, "token ids"),
        masses=masses,
    )


def _several(name: str, values: Iterable[T], what: str) -> tuple[T, ...]:
    if not isinstance(values, Iterable):
        raise UsageError(
            f"{name}: expected a sequence of {what}, got {show(values)}", name="E_OPTION"
        )
    return tuple(values)


class LookAgain:
    """A model that is ready to be asked: an engine and the processor of its checkpoint.

    `engine`: an Engine, with the `processor` of its checkpoint; or the path of a bundle, which
    brings both (`from_bundle` has more to choose from). `eos_token_ids`: what ends an answer, by
    default the model config's and `<|im_end|>`. `speculate`: tokens guessed ahead in a step out of
    what this model has said before, 0 to 16; it changes no answer, only how fast it comes.
    Threads may share it, and `agenerate` and `astream` may be awaited many at a time: engine steps
    take turns. Together they may ask for no more sequences at a time than the engine's `max_batch`
    (MachineError E_NO_SLOT).
    """

    def __init__(
        self,
        engine: Engine | Path | str,
        processor: Processor | None = None,
        *,
        eos_token_ids: Iterable[int] | None = None,
        prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
        speculate: int = 0,
    ) -> None:
        if isinstance(engine, (str, Path)):
            if processor is not None:
                raise UsageError("processor: a bundle brings its own\ngive the path alone")
            engine, processor, ends = _open_bundle(engine, "auto", None, verify=True)
            eos_token_ids = ends if eos_token_ids is None else eos_token_ids
        if processor is None:
            raise UsageError(
                "processor: an engine needs the Processor of its checkpoint\n"
                "give Processor.from_pretrained(directory), or the path of a bundle as engine"
            )
        processor.check_model(engine.config)
        if eos_token_ids is None:
            eos_token_ids = end_tokens(engine.config, processor)
        self.engine = engine
        self.processor = processor
        self.session = Session(
            engine,
            processor.vocabulary,
            eos_token_ids=eos_token_ids,
            prefill_chunk=prefill_chunk,
            limits=processor.limits,
            speculate=speculate,
        )
        self._worker: ThreadPoolExecutor | None = None
        self._worker_process = 0

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        *,
        backend: Backend = "auto",
        limits: Limits | None = None,
        verify: bool = True,
        speculate: int = 0,
        **options: Any,
    ) -> LookAgain:
        """The model in a bundle.

        `backend` "auto": the compiled CPU kernels where they are installed and the bundle has
        weights for them, else ONNX Runtime. `options` go to the engine; `mass` and `huge_pages`
        are of `OnnxEngine`, and left out where "auto" takes the kernels, whose mass is always
        there. Raises BundleError, MachineError.
        """
        engine, processor, ends = _open_bundle(path, backend, limits, verify=verify, **options)
        return cls(engine, processor, eos_token_ids=ends, speculate=speculate)

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, *, limits: Limits | None = None, **options: Any
    ) -> LookAgain:
        """The model in a Hugging Face directory, on PyTorch (the reference engine).

        `options` go to `TorchEngine.from_pretrained`. Raises CheckpointError, and MachineError
        E_NO_TORCH where PyTorch is not installed.
        """
        try:
            from la_trt.engines.torch import TorchEngine
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise MachineError(
                "engine 'torch': PyTorch is not installed\n"
                "install la-trt[train], or build a bundle and open that",
                name="E_NO_TORCH",
            ) from None
        root = Path(path)
        processor = Processor.from_pretrained(root, limits)
        engine = TorchEngine.from_pretrained(root, **options)
        return cls(engine, processor, eos_token_ids=end_tokens(engine.config, processor, root))

    def prompt(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        max_tokens: int = 0,
    ) -> Prompt:
        """The tokenised request, refused when it and `max_tokens` exceed the context."""
        most = self.engine.limits.max_len
        return self.processor(prompt, images, system, max_length=most, reserved=max_tokens)

    def room(self, prompt: Prompt) -> int:
        """Tokens that the context has left behind a prompt."""
        return self.engine.limits.max_len - len(prompt.input_ids)

    def generate(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        **options: Any,
    ) -> Result:
        """The answer to one question; `options` as in `make_options`.

        With `num_samples` above 1 the first of them; `stream` has all. Raises UsageError,
        InputError.
        """
        made = make_options(**options)
        return self.session.generate(
            self.prompt(images, prompt, system=system, max_tokens=made.max_tokens), made
        )

    def stream(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """The events of the answer to one question; the last one holds the Result."""
        made = make_options(**options)
        return self.session.stream(
            self.prompt(images, prompt, system=system, max_tokens=made.max_tokens), made
        )

    async def agenerate(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        **options: Any,
    ) -> Result:
        """`generate` without blocking the event loop. Cancelling it ends the answer."""
        async with aclosing(self.astream(images, prompt, system=system, **options)) as events:
            async for event in events:
                if isinstance(event, DoneEvent):
                    return event.result
        raise AssertionError("an answer without a last event")

    def astream(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """`stream` without blocking the event loop; `aclose()` it to leave early."""
        if self._worker is None or self._worker_process != os.getpid():  # a fork keeps no threads
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="la-trt")
            self._worker_process = os.getpid()
        return iterate(self._worker, lambda: self.stream(images, prompt, system=system, **options))


def _open_bundle(
    path: Path | str,
    backend: Backend,
    limits: Limits | None,
    *,
    verify: bool,
    **options: Any,
) -> tuple[Engine, Processor, frozenset[int]]:
    """A bundle's engine, processor and end tokens."""
    from la_trt.engines.native import is_native
    from la_trt.files.bundle import open_bundle

    if backend not in get_args(Backend):
        raise UsageError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    threads = options.get("threads")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise UsageError(f"threads: expected an integer from 1 to {MAX_THREADS}, got {threads!r}")
    bundle = open_bundle(path, verify=verify)
    processor = Processor.from_pretrained(bundle.path, limits)
    if backend == "auto":
        backend = "native" if is_native(bundle) else "onnx"
        if backend == "native":
            options = {k: v for k, v in options.items() if k not in _ONNX_ALONE}
        elif "kv_dtype" in options:
            raise UsageError(
                "kv_dtype: the native engine, which has it, cannot run this bundle here\n"
                "leave it out: ONNX Runtime keeps float32"
            )
    engine = _bundle_engine(backend)(bundle, **options)
    return engine, processor, end_tokens(bundle.config, processor, bundle.path)


def _bundle_engine(backend: Backend) -> Callable[..., Engine]:
    if backend == "native":
        from la_trt.engines.native import NativeEngine

        return NativeEngine
    if backend == "tensorrt":
        from la_trt.engines.tensorrt import TensorRTEngine

        return TensorRTEngine
    from la_trt.engines.onnx import OnnxEngine

    return OnnxEngine


def end_tokens(
    config: ModelConfig, processor: Processor, directory: Path | None = None
) -> frozenset[int]:
    """The ids that end an answer.

    Those of `generation_config.json` in `directory` where it names any, else those of the
    model config; and always `<|im_end|>`, which ends the assistant's turn in the template.
    """
    named = _generation_config_eos(directory) if directory else ()
    ids = set(named or config.eos_token_ids)
    turn_end = processor.vocabulary.controls.get("<|im_end|>")
    if turn_end is not None:
        ids.add(turn_end)
    if not ids:
        raise CheckpointError(
            "config.json: no eos_token_id, and the tokenizer has no <|im_end|>\n"
            "add eos_token_id to generation_config.json",
            name="E_CONFIG",
        )
    return frozenset(ids)


def _generation_config_eos(directory: Path) -> tuple[int, ...]:
    path = directory / "generation_config.json"
    if not (path.exists() or path.is_symlink()):
        return ()
    with safe_file(directory, path.name).open("rb") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    raw = parse_json(
        data, where=str(path), todo="download the file again", max_bytes=_MAX_CONFIG_BYTES
    )
    value = raw.get("eos_token_id") if isinstance(raw, dict) else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise CheckpointError(
                f"{path}: eos_token_id {show(value)}, expected token ids\ndownload the file again",
                name="E_CONFIG",
            )
    return tuple(ids)
