"""`la-trt doctor`: what this machine can run, found out by running it."""

from __future__ import annotations

from dataclasses import asdict

import click

from la_trt.cli.app import debug_option
from la_trt.cli.checks import Check, Status, machine_checks, package_checks
from la_trt.cli.terminal import print_json
from la_trt.errors import MachineError

_MARKS: dict[Status, str] = {"ok": "ok", "failed": "FAILED", "absent": "--"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@debug_option
def command(as_json: bool) -> None:
    """Say what this machine can run, having run it.

    The shipped model is built into a temporary directory and answers a question about a drawn
    image on every engine that is installed; two engines must give the same tokens. Exit code
    5 if something that is needed does not work.
    """
    from la_trt.cli.trial import engine_checks

    checks = [*machine_checks(), *package_checks()]
    if not as_json:
        _show(checks)
    engines = engine_checks()
    checks += engines
    failed = [check.name for check in checks if check.status == "failed"]
    if as_json:
        facts = {"ok": not failed, "checks": [asdict(check) for check in checks]}
        print_json(facts)
    else:
        _show(engines)
    if failed:
        raise MachineError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}\n"
            "mend these first: la-trt will not work as it should",
            name="E_DOCTOR",
        )


def _show(checks: list[Check]) -> None:
    for check in checks:
        click.echo(f"{_MARKS[check.status]:7} {check.name:20} {check.detail}")
