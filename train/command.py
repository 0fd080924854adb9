"""Runs a training command as the contract says: messages of three lines, published exit codes."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from la_trt.errors import LookAgainError, MachineError

INTERRUPTED = 130


@dataclass(slots=True)
class Saved:
    """The step of the last state on disk; 0: there is none."""

    step: int


@contextlib.contextmanager
def saved_steps(done: int) -> Iterator[Saved]:
    """A block of training, which says after Ctrl-C where the same command goes on."""
    saved = Saved(done)
    try:
        yield saved
    except KeyboardInterrupt:
        at = f"goes on from step {saved.step}" if saved.step else "begins anew, nothing was saved"
        raise KeyboardInterrupt(f"{at} (--save-every)") from None


def run(command: click.Command, args: Sequence[str] | None = None, *, goes_on: str = "here") -> int:
    """The exit code of a command, its errors reported on stderr.

    `goes_on`: from where the same command does after an interruption; "" where it begins anew.
    """
    try:
        command.main(args=args, standalone_mode=False)
    except LookAgainError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort) as stop:
        then = f"goes on from {goes_on}" if goes_on else "begins anew"
        then = str(stop.__cause__ or stop) or then  # what `saved_steps` knows; click wraps it
        print(f"interrupted: the same command {then}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(MachineError(f"{where}{error.strerror}").render(), file=sys.stderr)
        return MachineError.exit_code
    except Exception as error:
        traceback.print_exception(error)  # days of training are worth more than three lines
        print(
            LookAgainError("this is a bug: report it with the lines above").render(),
            file=sys.stderr,
        )
        return LookAgainError.exit_code
    return 0
