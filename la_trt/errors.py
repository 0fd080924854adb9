"""Every error a user can cause, with its name, exit code and three-line message.

The published contract: a message says what is wrong, which file or field, and what to do.
Exit codes: 2 usage, 3 input rejected, 4 checkpoint or bundle rejected, 5 environment,
6 a run failed its own gate, 70 internal bug, 130 Ctrl-C.
"""

from __future__ import annotations


class LookAgainError(Exception):
    """Base of all errors meant for users; `str(e)` is the message, `e.name` the E_NAME."""

    exit_code = 70
    default_name = "E_INTERNAL"

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name or self.default_name

    def render(self) -> str:
        """`la-trt: error[E_NAME]: message`, at most 3 lines."""
        lines = str(self).strip().splitlines() or [""]
        if len(lines) > 3:
            lines = [*lines[:2], " ".join(lines[2:])]
        return f"la-trt: error[{self.name}]: " + "\n".join(lines)


class UsageError(LookAgainError, ValueError):
    """A wrong option or combination of options."""

    exit_code = 2
    default_name = "E_USAGE"


class InputError(LookAgainError, ValueError):
    """An image, prompt or dataset row that is refused."""

    exit_code = 3
    default_name = "E_INPUT"


class ImageError(InputError):
    """The image `index`, from 0, of a request."""

    def __init__(self, message: str, *, name: str, index: int) -> None:
        super().__init__(message, name=name)
        self.index = index


class CheckpointError(LookAgainError, ValueError):
    """A model directory that is refused; the message names the file and the tensor."""

    exit_code = 4
    default_name = "E_CHECKPOINT"


class BundleError(LookAgainError, ValueError):
    """A bundle that is refused; the message names the file."""

    exit_code = 4
    default_name = "E_BUNDLE"


class MachineError(LookAgainError, RuntimeError):
    """The environment is in the way: disk, memory, permission, port, lock, missing engine."""

    exit_code = 5
    default_name = "E_ENVIRONMENT"


class GateError(LookAgainError, RuntimeError):
    """A run finished but failed its own check (a parity gate, an accuracy gate)."""

    exit_code = 6
    default_name = "E_GATE"
