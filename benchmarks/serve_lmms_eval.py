"""lmms-eval against the server, through lmms-eval's own adapter for OpenAI's API.

python -m benchmarks.serve_lmms_eval --python ~/lmms/bin/python

The task is written here, with its questions and pictures: nothing is downloaded. The score that
lmms-eval finds must be that of the same questions asked one by one of the same server, and above
what guessing gives. Exit code 1 where it is not.

lmms-eval brings torch and many other packages, so it has an environment of its own:
`python3 -m venv ~/lmms && ~/lmms/bin/pip install lmms-eval`. Without all of its packages
(`--no-deps`), those suffice that its evaluator and adapter import.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from benchmarks.serve_client import NAME, Question, post, questions, request, serving

TASK = "lookworld_count"
_YAML = """\
task: "{task}"
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
process_results: !function utils.process_results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_UTILS = """\
import base64
import io

from PIL import Image


def doc_to_visual(doc):
    data = base64.b64decode(doc["image"])
    return [Image.open(io.BytesIO(data)).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}
"""


def main() -> None:
    """Run the task, compare, and write both scores to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of lmms-eval's environment")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer, reasoning too")
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    options = parser.parse_args()
    # What the results say of the command should hold on other machines.
    sys.argv = ["PYTHON" if word == str(options.python) else word for word in sys.argv]
    asked = questions(options.questions)
    with (
        tempfile.TemporaryDirectory(prefix="la-trt-lmms-") as work,
        serving(backend=options.backend) as server,
    ):
        write_task(Path(work), asked, options.max_tokens)
        url = f"http://127.0.0.1:{server.port}/v1"
        scored = run_lmms_eval(options.python, Path(work), url)
        own = asyncio.run(own_score(server.port, asked, options.max_tokens))
    same = abs(scored["accuracy"] - own) < 1e-9
    found = {"questions": len(asked), **scored, "own_accuracy": own, "same": same}
    rows = [f"| {name} | {value} |" for name, value in found.items()]
    publish("serve_lmms_eval", found, "\n".join(["| | |", "| --- | --- |", *rows]))
    sys.exit(0 if same and own > 0.5 else 1)


def write_task(directory: Path, asked: list[Question], max_tokens: int) -> None:
    """A task for `--include_path`, in three files."""
    data = directory / "test.jsonl"
    with data.open("w") as file:
        for number, question in enumerate(asked):
            row = {"id": number, "question": question.text, "answer": question.answer}
            file.write(json.dumps(row | {"image": question.url.partition(",")[2]}) + "\n")
    text = _YAML.format(task=TASK, data=data, max_tokens=max_tokens)
    (directory / f"{TASK}.yaml").write_text(text)
    (directory / "utils.py").write_text(_UTILS)


def run_lmms_eval(python: Path, directory: Path, url: str) -> dict[str, Any]:
    """The score and the version of lmms-eval. Raises CalledProcessError."""
    model = f"model_version={NAME},base_url={url},api_key=none,timeout=120,num_concurrent=8"
    output = directory / "output"
    # Without symbolic links resolved: an environment's python is one.
    command = [os.path.abspath(python), "-m", "lmms_eval", "--model", "openai"]
    command += ["--model_args", model, "--include_path", str(directory), "--tasks", TASK]
    command += ["--batch_size", "1", "--output_path", str(output)]
    # No data set of the hub is needed, so none may be asked for.
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "hf")}
    environment = {**os.environ, **offline}
    subprocess.run(command, check=True, cwd=directory, env=environment, stdout=sys.stderr)
    (report,) = output.rglob("*results.json")
    scores = json.loads(report.read_text())["results"][TASK]
    accuracy = next(v for k, v in scores.items() if k.startswith("accuracy,"))
    version = subprocess.run(
        [command[0], "-c", "import importlib.metadata as m; print(m.version('lmms_eval'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {"lmms_eval": version, "accuracy": float(accuracy)}


async def own_score(port: int, asked: list[Question], max_tokens: int) -> float:
    """The share that is right when the same is asked without lmms-eval."""
    replies = [await post(port, request(q, max_tokens=max_tokens)) for q in asked]
    right = [r.content.strip() == q.answer for r, q in zip(replies, asked, strict=True)]
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
