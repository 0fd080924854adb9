"""Writes `NAME/config.pbtxt`, `NAME/1/model.py` and the bundle in `NAME/1/bundle`.

The model runs in Triton's Python backend, in an environment that has la-trt installed. The
directory holds everything else, so that it can be copied or mounted anywhere.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from la_trt.errors import UsageError
from la_trt.files.atomic import atomic_directory

CONFIG = "config.pbtxt"
_MODEL = Path(__file__).with_name("model.py")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TEMPLATE = """\
# la-trt: a bundle in Triton's Python backend. Written by la-trt build.
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{
  decoupled: true
}}
input [
  {{
    name: "PROMPT"
    data_type: TYPE_STRING
    dims: [ 1 ]
  }},
  {{
    name: "IMAGES"
    data_type: TYPE_STRING
    dims: [ -1 ]
    optional: true
  }},
  {{
    name: "OPTIONS"
    data_type: TYPE_STRING
    dims: [ 1 ]
    optional: true
  }}
]
output [
  {{
    name: "TEXT"
    data_type: TYPE_STRING
    dims: [ 1 ]
  }},
  {{
    name: "RESULT"
    data_type: TYPE_STRING
    dims: [ 1 ]
  }}
]
instance_group [
  {{
    count: 1
    kind: KIND_CPU
  }}
]
parameters [
  {{
    key: "backend"
    value: {{ string_value: "{backend}" }}
  }},
  {{
    key: "threads"
    value: {{ string_value: "0" }}
  }},
  {{
    key: "max_batch"
    value: {{ string_value: "8" }}
  }}
]
"""


def check_repository(repository: Path, output: Path) -> str:
    """The model's name, which is the bundle's. Raises UsageError for one Triton cannot have."""
    name = output.resolve().name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--triton: a model cannot be called {name!r}\n"
            "give an --output whose name has letters, digits, '_', '.' and '-' alone"
        )
    inside = (repository.resolve() / name).is_relative_to(output.resolve())
    if inside or output.resolve().is_relative_to(repository.resolve() / name):
        raise UsageError(f"--triton {repository}: overlaps --output\nchoose another directory")
    return name


def write_repository(bundle: Path, repository: Path, *, backend: str) -> Path:
    """The model's directory in `repository`, all or nothing, with a copy of the bundle.

    `backend`: onnx, native or tensorrt, what config.pbtxt names; anyone may edit it. An older
    model of that name is replaced. Raises UsageError, MachineError.
    """
    name = check_repository(repository, bundle)
    target = repository / name
    with atomic_directory(target, marker=CONFIG) as staging:
        (staging / CONFIG).write_text(_TEMPLATE.format(name=name, backend=backend))
        version = staging / "1"
        version.mkdir()
        shutil.copyfile(_MODEL, version / "model.py")
        shutil.copytree(bundle, version / "bundle")
    return target
