"""Chat templates, rendered in a sandbox with bounds. A template is data of unknown origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from la_trt.errors import CheckpointError, InputError
from la_trt.processor.sandbox import (
    BUDGET,
    BoundedEnvironment,
    Budget,
    TemplateRefusal,
    count_nodes,
)
from la_trt.processor.tokenizer import read_json_object, read_text_file

MAX_SOURCE_CHARS = 64 << 10
_MAX_FILE_BYTES = 16 << 20
# Which counts where several are there: as the processors of `transformers` since 4.52 have it.
TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja", "tokenizer_config.json")

# The format of Qwen2.5-VL: ChatML, a default system prompt, one slot an image.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, source: str = DEFAULT_TEMPLATE, *, where: str = "built-in template") -> None:
        self._where = where
        self.source = source
        if len(source) > MAX_SOURCE_CHARS:
            raise self._refused(f"{len(source)} characters, more than {MAX_SOURCE_CHARS}")
        environment = BoundedEnvironment()
        try:
            tree = environment.guarded(source)
            self._nodes = count_nodes(tree)
            self._template = environment.from_string(tree)
        except Exception as error:  # hostile sources fail in jinja, in Python's compiler, anywhere
            raise self._refused(f"{type(error).__name__}: {error}") from None

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate:
        """The directory's template: the first of `TEMPLATE_FILES` that has one; Qwen2.5-VL's own
        when there is none.
        """
        found = find_template(directory)
        return cls() if found is None else cls(found[1], where=str(found[0]))

    def render(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """The rendered text.

        Raises CheckpointError E_TEMPLATE when the template fails or passes its bounds, and
        InputError E_MESSAGES when it declares these messages unacceptable.
        """
        token = BUDGET.set(Budget(_num_chars(messages), self._nodes))
        try:
            return self._template.render(
                messages=messages, **{"tools": None, "documents": None, **variables}
            )
        except TemplateRefusal as refusal:
            reason = "".join(c if c.isprintable() else "?" for c in str(refusal))[:200]
            raise InputError(
                f"messages: refused by the chat template: {reason}", name="E_MESSAGES"
            ) from None
        except Exception as error:
            raise self._refused(f"{type(error).__name__}: {error}") from None
        finally:
            BUDGET.reset(token)

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: chat template refused: {' '.join(why.split())[:300]}",
            name="E_TEMPLATE",
        )


def find_template(directory: Path) -> tuple[Path, str] | None:
    """The file of a model directory that has its chat template, and the template."""
    for name in TEMPLATE_FILES:
        path = directory / name
        if not (path.exists() or path.is_symlink()):
            continue
        if name.endswith(".jinja"):
            return path, read_text_file(path, _MAX_FILE_BYTES, name="E_TEMPLATE")
        source = _named_template(read_json_object(path, _MAX_FILE_BYTES), path)
        if source is not None:
            return path, source
    return None


def _named_template(raw: dict[str, Any], path: Path) -> str | None:
    """The `chat_template` of a JSON file: a string, or the one named 'default' of a list."""
    found = raw.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise CheckpointError(
            f"{path}: chat_template: expected text, got {json.dumps(found)[:80]}", name="E_TEMPLATE"
        )
    return found


def _num_chars(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0
