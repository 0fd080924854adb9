"""What the machine can do at this moment: read bandwidth and dot products, by `latrt_bench`."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

from benchmarks.peer_engines import ROOT, NotAvailable

_BUILD = ROOT / "build" / "csrc"
_RATE = re.compile(r"((?:plain|fetched) read|(?:dot|tile) products)\s+([\d.]+) \(\s*([\d.]+)\)")


@functools.cache
def _built() -> Path:
    """The probe, built anew where its sources changed, once a run."""
    configure = ["cmake", "-S", ".", "-B", str(_BUILD)]
    build = ["cmake", "--build", str(_BUILD), "--target", "latrt_bench"]
    for command in (configure, build):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise NotAvailable(f"the probe was not built: {done.stderr[-300:]}")
    return _BUILD / "latrt_bench"


def machine_peaks(threads: int) -> dict[str, float]:
    """{"read_gb_s", "read_gb_s_best", "dot_gop_s", "dot_gop_s_best"}: median, best tenth.

    Reads with and without fetching ahead, whichever is faster; dot products of vectors (AVX2:
    products of bytes, added up in 16 bits), or of AMX tiles where the processor has them.
    """
    done = subprocess.run(
        [str(_built()), "1", str(threads), "huge", "peaks"],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks: dict[str, float] = {}
    for name, best, median in _RATE.findall(done.stdout):
        key = "read_gb_s" if name.endswith("read") else "dot_gop_s"
        if float(best) > peaks.get(f"{key}_best", 0.0):
            peaks[key], peaks[f"{key}_best"] = float(median), float(best)
    return peaks
