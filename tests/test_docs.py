"""Every path, command and flag that a document names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from la_trt.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
MADE_LATER = ("out/", "runs/", ".venv", "build/", "dist/")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*")
_SUFFIX = re.compile(r"\.(py|md|toml|txt|yaml|json|png|safetensors|cu|cpp|h|jinja)$")
# Files of a bundle or a checkpoint, which documents name without a directory.
_OF_A_DIRECTORY = {
    "bundle.json",
    "chat_template.jinja",
    "config.json",
    "decoder.onnx",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "native.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vision.onnx",
}


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split() if listed.returncode == 0 else []
    return [ROOT / name for name in names] or [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def problem_of_path(text: str, document: Path) -> str | None:
    """Why a path does not exist, or None. It may be meant from the root or from the document."""
    name = text.split("#")[0].rstrip("/")
    if not name or name.startswith(MADE_LATER) or name in _OF_A_DIRECTORY:
        return None
    if any((base / name).exists() for base in (ROOT, document.parent, ROOT / "la_trt")):
        return None
    return f"no such path: {text}"


def looks_like_a_path(text: str) -> bool:
    if not _PATH.fullmatch(text) or text.startswith("..") or "//" in text:
        return False
    return bool(_SUFFIX.search(text)) or text.endswith("/") or text.startswith(("la_trt/", "docs/"))


def problem_of_command(line: str) -> str | None:
    """Why a command line would be refused before it does anything, or None."""
    words = shlex.split(line.partition(" # ")[0], comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return None
    program = words[0].rsplit("/", 1)[-1]
    if program == "make":
        unknown = [w for w in words[1:] if "=" not in w and w not in targets()]
        return f"make has no target {unknown[0]}" if unknown else None
    if program == "la-trt":
        return problem_of_la_trt(words[1:])
    if program in ("python", "python3") and words[1:2] == ["-m"]:
        return problem_of_module(words[2])
    return None


def problem_of_la_trt(words: list[str]) -> str | None:
    if not words or words[0] in ("--help", "--version"):
        return None
    if words[0] not in COMMANDS:
        return f"la-trt has no command {words[0]}"
    command = app.get_command(click.Context(app), words[0])
    assert command is not None
    flags = {flag for param in command.params for flag in param.opts} | {"--help"}
    given = [w.partition("=")[0] for w in words[1:] if w.startswith("--")]
    unknown = [flag for flag in given if flag not in flags]
    return f"la-trt {words[0]} has no flag {unknown[0]}" if unknown else None


def problem_of_module(name: str) -> str | None:
    path = ROOT / name.replace(".", "/")
    ours = (ROOT / name.split(".")[0]).is_dir()
    if not ours or path.with_suffix(".py").exists() or (path / "__main__.py").exists():
        return None
    return f"no module {name} to run"


def problems(document: Path, text: str) -> list[str]:
    found: list[str | None] = []
    for language, body in _FENCE.findall(text):
        if language in ("sh", "bash", "console"):
            lines = body.replace("\\\n", " ").splitlines()
            found += [problem_of_command(line.removeprefix("$ ")) for line in lines]
    prose = _FENCE.sub("", text)
    for span in _SPAN.findall(prose):
        if looks_like_a_path(span):
            found.append(problem_of_path(span, document))
        elif span.startswith(("make ", "la-trt ", "python -m ")):
            found.append(problem_of_command(span))
    for link in _LINK.findall(prose):
        if "://" not in link and not link.startswith(("#", "mailto:")):
            found.append(problem_of_path(link, document))
    return [problem for problem in found if problem]


def tree_problems(text: str) -> list[str]:
    """What the README's tree names and the project lacks."""
    found = []
    for language, body in _FENCE.findall(text):
        if language == "text":
            for line in body.splitlines():
                name = line.split("  ")[0].strip()
                if name and line == line.lstrip() and not (ROOT / name).exists():
                    found.append(f"no such path in the tree: {name}")
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_named_exists(document: Path) -> None:
    text = document.read_text()
    assert problems(document, text) == []
    if document.name == "README.md":
        assert tree_problems(text) == []


def test_there_are_documents() -> None:
    names = {str(path.relative_to(ROOT)) for path in documents()}
    assert {"README.md", "CHANGELOG.md", "docs/architecture.md"} <= names


@pytest.mark.parametrize(
    "text",
    [
        "see `la_trt/nowhere.py`",
        "see [this](docs/nowhere.md)",
        "run `la-trt infer --frob`",
        "run `make coffee`",
        "```sh\nla-trt knit\n```\n",
        "```sh\nmake demo coffee\n```\n",
        "```sh\nX=1 la-trt build --ckpt DIR \\\n  --frob\n```\n",
        "```sh\npython -m train.nowhere --seed 1\n```\n",
    ],
)
def test_a_slip_is_found(text: str) -> None:
    assert len(problems(ROOT / "README.md", text)) == 1


def test_what_exists_is_no_slip() -> None:
    text = (
        "`la_trt/cli/app.py`, [style](README.md#tree), `make test`, `out/map.png`, `bundle.json`\n"
        "```sh\n$ la-trt infer --engine DIR --image a.png  # asks\npip install .\n```\n"
    )
    assert problems(ROOT / "README.md", text) == []
    assert tree_problems("```text\nMakefile  how\n  nested\nnowhere/  gone\n```\n") == [
        "no such path in the tree: nowhere/"
    ]
