"""la-trt in Triton's Python backend: requests join the running batch and answer when they can.

Inputs: PROMPT, a text. IMAGES, encoded image files, none or several. OPTIONS, a JSON object with
any of policy (a preset), inject, route_percent, max_reflections, max_tokens, temperature, top_p,
top_k, repetition_penalty, seed, stop, system, stream. Outputs: TEXT and RESULT, the JSON object of
`la-trt infer --json`. With `stream`, every response has the text that is new, and the last one
the RESULT, which is empty until then.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from la_trt import LookAgain
from la_trt.api import make_options
from la_trt.continuous import Continuous
from la_trt.errors import InputError, LookAgainError
from la_trt.events import DoneEvent, TokenEvent
from la_trt.files.strict_json import parse_json
from la_trt.reattention.policy import preset

OPTIONS = {
    "policy": str,
    "inject": str,
    "route_percent": (int, float),
    "max_reflections": int,
    "max_tokens": int,
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "repetition_penalty": (int, float),
    "seed": int,
    "stop": (str, list),
    "system": str,
    "stream": bool,
}
MAX_OPTIONS_BYTES = 64 << 10


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args):
        """Open the bundle that lies beside this file; `args` as Triton gives them."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        given = {name: value["string_value"] for name, value in parameters.items()}
        options = {"max_batch": int(given.get("max_batch", "8"))}
        threads = int(given.get("threads", "0"))
        if threads:  # 0: all cores
            options["threads"] = threads
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self.model = LookAgain.from_bundle(bundle, backend=given.get("backend", "onnx"), **options)
        self.engine = Continuous(self.model.session)

    def execute(self, requests):
        """Take requests in; responses go through their senders, when the engine has them."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except LookAgainError as error:
                _fail(sender, error)
        return

    def finalize(self):
        """Returns when every request has been answered."""
        self.engine.close()

    def _submit(self, request, sender):
        options = _options(_text(request, "OPTIONS"))
        prompt, images = _text(request, "PROMPT"), _bytes(request, "IMAGES")
        if not prompt:
            raise InputError("PROMPT: empty", name="E_PROMPT")
        system, stream = options.pop("system", None), options.pop("stream", False)
        settings = make_options(**options)
        made = self.model.prompt(images, prompt, system=system, max_tokens=settings.max_tokens)
        self.engine.submit(made, settings, _Delivery(sender, stream), sender.is_cancelled)


class _Delivery:
    """Sends the events of one request as responses."""

    def __init__(self, sender, stream):
        self._sender, self._stream = sender, stream

    def __call__(self, event):
        if isinstance(event, LookAgainError):
            _fail(self._sender, event)
        elif isinstance(event, TokenEvent):
            if self._stream and event.text:
                self._send(event.text, "")
        elif isinstance(event, DoneEvent):
            result = event.result
            if result.finish_reason == "numerical_error":
                _fail(self._sender, LookAgainError("not finite numbers", name="E_NUMERICAL"))
                return
            text = "" if self._stream else result.text
            self._send(text, json.dumps(result.to_json(), ensure_ascii=False), final=True)

    def _send(self, text, result, *, final=False):
        tensors = [
            pb_utils.Tensor(name, np.array([value.encode("utf-8", "replace")], dtype=object))
            for name, value in (("TEXT", text), ("RESULT", result))
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)


def _fail(sender, error):
    """One response with an error: its name and first line, no path of the server."""
    message = (str(error).strip().splitlines() or [""])[0]
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{error.name}: {message}"))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _options(text):
    if not text:
        return {}
    value = parse_json(
        text.encode(), where="OPTIONS", todo="", error=InputError, max_bytes=MAX_OPTIONS_BYTES
    )
    if not isinstance(value, dict):
        raise InputError("OPTIONS: expected a JSON object", name="E_OPTION")
    for name, given in value.items():
        if name not in OPTIONS:
            raise InputError(f"OPTIONS: unknown {name[:40]!r}", name="E_OPTION")
        good = isinstance(given, OPTIONS[name])
        if not good or (isinstance(given, bool) and OPTIONS[name] is not bool):
            raise InputError(f"OPTIONS: {name} has a wrong type", name="E_OPTION")
    if "policy" in value:
        value["policy"] = preset(value["policy"])  # never a path
    return value


def _bytes(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else [bytes(item) for item in tensor.as_numpy().reshape(-1)]


def _text(request, name):
    found = _bytes(request, name)
    if not found:
        return ""
    try:
        return found[0].decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{name}: not UTF-8", name="E_PROMPT") from None
