"""lmms-eval against the server, through lmms-eval's own adapter for OpenAI's API.

python -m benchmarks.serve_lmms_eval --python ~/lmms/bin/python --tasks pope --limit 8

lmms-eval brings torch, torchvision and many other packages, so it has an environment of its own
(`python3 -m venv ~/lmms && ~/lmms/bin/pip install lmms-eval`), and it downloads the task's data.
**This script has not been run.**
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.serve_client import NAME, serving


def main() -> None:
    """Run the tasks; the exit code is lmms-eval's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of lmms-eval's environment")
    parser.add_argument("--tasks", default="pope")
    parser.add_argument("--limit", type=int, default=8, help="questions of each task")
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer, reasoning too")
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    options = parser.parse_args()
    with serving(backend=options.backend) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        model = f"model_version={NAME},base_url={url},api_key=none,timeout=120,num_concurrent=8"
        command = [str(options.python), "-m", "lmms_eval", "--model", "openai"]
        command += ["--model_args", model, "--tasks", options.tasks, "--batch_size", "1"]
        command += ["--gen_kwargs", f"max_new_tokens={options.max_tokens},temperature=0"]
        code = subprocess.run([*command, "--limit", str(options.limit)]).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()
