"""The command line: `la-trt build | infer | bench | serve | batch | eval | info | doctor`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command named in `sys.argv`; returns the published exit code."""
    from la_trt.cli.app import run

    return run(sys.argv[1:])
