"""The root command and the one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from la_trt import __version__
from la_trt.errors import LookAgainError, MachineError, UsageError
from la_trt.files.atomic import FULL

# One module a command, imported when it is used, so that `la-trt --help` stays quick.
COMMANDS = {
    "build": "Write an engine bundle from a checkpoint.",
    "infer": "Ask a question about images.",
    "bench": "Measure a bundle under one or more policies.",
    "serve": "Serve a model over HTTP, as the OpenAI API has it.",
    "batch": "Answer a file of questions into a file of answers.",
    "eval": "Score a model on a suite, or compare two runs.",
    "info": "Say what a checkpoint or bundle is, or how an image is cut.",
    "doctor": "Say what this machine can run, having run it.",
}
INTERRUPTED = 130

# What the machine, not the input, is to blame for.
_MACHINE_ERRNO = {
    errno.ENOSPC: "free some disk space or choose another place",
    errno.EDQUOT: "free some disk space or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the permissions or choose another place",
    errno.EPERM: "check the permissions or choose another place",
    errno.EISDIR: "choose the name of a file, not of a directory",
    errno.ENOTDIR: "a parent of it is a file: choose another place",
    errno.ENOENT: "create its directory first or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some programs that hold files open",
    errno.ENOMEM: "free some memory",
    errno.EIO: "check the disk",
    errno.EBUSY: "wait until it is free",
    errno.ENODEV: "choose another place",
}


@dataclass(slots=True)
class State:
    """What the root options set; `ctx.obj` of every command.

    `kept`: where an interrupted command has kept what it did, from which the same command goes on.
    """

    debug: bool = False
    kept: str = ""


class _LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"la_trt.cli.{cmd_name}").command
        assert isinstance(command, click.Command), f"la_trt.cli.{cmd_name}.command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(State).debug = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Print a traceback when something fails.",
)


@click.group(
    cls=_LazyGroup,
    name="la-trt",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Exit codes: 0 done, 2 usage, 3 input rejected, 4 checkpoint or bundle rejected, "
    "5 environment, 6 a run failed its own gate, 70 internal bug, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="la-trt", message="%(prog)s %(version)s")
@debug_option
def app() -> None:
    """Run Qwen2.5-VL models that look at the image again while they reason."""


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code, every error already reported on stderr."""
    state = State()
    try:
        _escape_unknown()
        with _plain_warnings():
            code = _invoke(args, state)
            sys.stdout.flush()
        return code
    except BaseException as error:
        return _report(error, state)


def _invoke(args: Sequence[str], state: State) -> int:
    try:
        with app.make_context("la-trt", list(args), obj=state) as ctx:
            app.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _report(error: BaseException, state: State) -> int:
    """Print the published message of an error; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        _discard_stdout()  # the reader of our output left: nobody is there to be told
        return 0
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    if state.debug:
        traceback.print_exception(error, file=sys.stderr)
    then = f"the same command goes on from {state.kept}" if state.kept else ""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        print(f"la-trt: interrupted{then and f': {then}'}", file=sys.stderr)
        return INTERRUPTED
    known = _as_known(error)
    if known.exit_code == MachineError.exit_code:
        _discard_stdout()
    print(known.render(), file=sys.stderr)
    if then and _is_full(error) and os.path.exists(state.kept):
        print(then, file=sys.stderr)
    return known.exit_code


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error."""
    return any(
        isinstance(problem, OSError) and problem.errno in FULL
        for problem in (error, error.__cause__)
    )


def _escape_unknown() -> None:
    """Let characters that the terminal's encoding lacks be written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Let what is still buffered go nowhere, or Python complains once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_known(error: BaseException) -> LookAgainError:
    """The error of the published list that stands for any exception."""
    if isinstance(error, LookAgainError):
        return error
    if isinstance(error, click.ClickException):
        return _usage_error(error)
    if isinstance(error, MemoryError):
        return MachineError(
            "the machine has too little memory for this\n"
            "use a smaller --max-model-len, smaller images, or free some memory",
            name="E_MEMORY",
        )
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNO:
        where = f"{error.filename}: " if error.filename else ""
        return MachineError(f"{where}{error.strerror}\n{_MACHINE_ERRNO[error.errno]}")
    what = " ".join(str(error).split())[:300]
    return LookAgainError(
        f"{type(error).__name__}: {what}\n"
        "this is a bug in la-trt: run again with --debug and report the traceback"
    )


def _usage_error(error: click.ClickException) -> UsageError:
    message = " ".join(error.format_message().split())
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    command = ctx.command_path if ctx is not None else "la-trt"
    return UsageError(f"{message}\ntry '{command} --help'")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show the warnings meant for users as one line each, without file and line."""

    def show(message: Warning | str, category: type[Warning], *args: object) -> None:
        print(f"la-trt: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
