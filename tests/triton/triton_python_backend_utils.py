"""What model.py uses of Triton's Python backend, with the checks that the real one makes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError(Exception):
    def message(self) -> str:
        return str(self.args[0])


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        assert isinstance(value, np.ndarray) and value.dtype == object, "TYPE_STRING: object array"
        assert all(isinstance(item, bytes) for item in value.reshape(-1)), "TYPE_STRING: bytes"
        self._name, self._value = name, value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value


class InferenceResponse:
    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        assert bool(output_tensors) != (error is not None), "outputs or an error"
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Collects responses; `done` is set with the final one, after which none may come."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.done = threading.Event()
        self.cancelled = False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.done.is_set(), "a response after the final one"
        self.responses.append(response)
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    def __init__(self, **inputs: Sequence[bytes]) -> None:
        self._inputs = {
            name: Tensor(name, np.array(list(values), dtype=object))
            for name, values in inputs.items()
        }
        self.sender = ResponseSender()

    def inputs(self) -> dict[str, Tensor]:
        return self._inputs

    def get_response_sender(self) -> ResponseSender:
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return request.inputs().get(name)
