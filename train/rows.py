"""One row of a data file as an example, or the reason why it is not one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from la_trt.errors import InputError, LookAgainError, UsageError
from la_trt.files.strict_json import parse_json, show
from la_trt.limits import Limits
from la_trt.lookworld import FAMILIES, SPLIT_SEEDS, Sample, WorldConfig, sample
from la_trt.processor.image import check_size, load_image
from la_trt.tags import conclusion

PLACEHOLDER = "<image>"
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_IMAGE_REASONS = {
    "E_IMAGE_FILE": "missing image",
    "E_IMAGE_TOO_LARGE": "huge image",
    "E_IMAGE_ASPECT": "huge image",
}
MAX_INDEX = 1 << 40


class RowError(InputError):
    """A row that is left out; `reason` is the short name that such rows are counted by."""

    default_name = "E_ROW"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """What a row may bring. `images`: the published limits of a picture and their number."""

    max_line_bytes: int = 1 << 20
    max_question_chars: int = 16_384
    max_response_chars: int = 65_536
    images: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookWorldRef:
    """A LookWorld sample by name: drawn when wanted, never stored.

    `family` None lets the sample draw its own, which is another sample than with it given.
    """

    split: str
    index: int
    family: str | None = None
    world: WorldConfig = field(default_factory=WorldConfig)

    def sample(self) -> Sample:
        """The sample, with its picture."""
        return _drawn(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `read_row` reads back; `world` holds what differs from the default."""
        out: dict[str, Any] = {"split": self.split, "index": self.index}
        if self.family is not None:
            out["family"] = self.family
        default = WorldConfig()
        changed = {
            f.name: getattr(self.world, f.name)
            for f in fields(WorldConfig)
            if getattr(self.world, f.name) != getattr(default, f.name)
        }
        return out | ({"world": changed} if changed else {})


@lru_cache(maxsize=64)
def _drawn(ref: LookWorldRef) -> Sample:
    return sample(ref.split, ref.index, ref.world, ref.family)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question about pictures.

    `images`: files (seen to decode when the row was read) or pictures; they stand before the
    question. `response`: the whole answer with its tags, where there is one; of its text only the
    tags may become control tokens (`train.data.encode_response`). `answer`: what is right, where
    it is known. `lookworld`: the sample that it is, where it is one.
    """

    images: tuple[Path | Image.Image, ...]
    question: str
    response: str | None
    answer: str | None
    id: str
    lookworld: LookWorldRef | None = None


def lookworld_example(ref: LookWorldRef, response: str | None = None) -> Example:
    """The example of a LookWorld sample, without a response unless one is given."""
    drawn = ref.sample()
    assert drawn.image is not None, "a sample without its picture"
    return Example(
        images=(drawn.image,),
        question=drawn.question.text,
        response=response,
        answer=drawn.answer,
        id=f"{ref.split}/{ref.index}/{ref.family or 'any'}",
        lookworld=ref,
    )


def read_row(
    line: bytes, *, images_dirs: Sequence[Path], limits: RowLimits, default_id: str
) -> Example:
    """The example of one line of a data file. Raises RowError.

    Two forms: `image` (a name, or a list of them), `question` and, as there are, `answer` and
    `response`; or `image` and `conversations` of `from` (human, gpt) and `value`, with `<image>`
    at the start or end of the first text (LLaVA-CoT-100k), of which the first exchange counts.
    In place of `image` a row may have `lookworld`: a `LookWorldRef` as `to_json` gives it.
    """
    if len(line) > limits.max_line_bytes:
        raise RowError("too long", f"more than {limits.max_line_bytes} bytes in a line")
    row = parse_json(
        line, where="row", todo="write one JSON object a line", error=_JsonError, name="E_ROW"
    )
    if not isinstance(row, dict):
        raise RowError("wrong type", f"expected an object, got {type(row).__name__}")
    chat = "conversations" in row
    question, response, answer = _chat(row) if chat else _plain(row)
    _check_text("question", question, limits.max_question_chars)
    _check_text("response", response or "", limits.max_response_chars)
    _check_text("answer", answer or "", limits.max_question_chars)
    name = _id(row, default_id)
    if "lookworld" in row:
        return _from_world(row["lookworld"], question, response, answer, name, limits)
    names = _image_names(row)
    if chat:
        question = _without_placeholders(question, len(names))
    if not question.strip():
        raise RowError("empty question", "nothing is asked")
    if len(names) > limits.images.max_images:
        raise RowError("too long", f"{len(names)} images, at most {limits.images.max_images}")
    images = tuple(_image(name, images_dirs, limits.images) for name in names)
    return Example(images=images, question=question, response=response, answer=answer, id=name)


class _JsonError(RowError):
    def __init__(self, message: str, *, name: str) -> None:
        super().__init__("broken JSON", message)


def _plain(row: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    question = _field(row, "question", str)
    response = _field(row, "response", str, default=None)
    answer = row.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise RowError("wrong type", f"answer: expected text, got {type(answer).__name__}")
    if not question.strip():
        raise RowError("empty question", "nothing is asked")
    return question, response, answer


def _chat(row: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """The first exchange of a conversation; the answer is what its CONCLUSION says."""
    turns = _field(row, "conversations", list)
    said: list[tuple[str, str]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError("wrong type", f"a turn is no object but {type(turn).__name__}")
        role = turn.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise RowError("unknown role", f"expected human or gpt, got {show(role)}")
        said.append((_ROLES[role], _field(turn, "value", str)))
    wanted = ["human", "gpt"] * ((len(said) + 1) // 2)
    if not said or [role for role, _ in said] != wanted[: len(said)]:
        raise RowError("turns out of order", "expected human and gpt in turn, human first")
    response = said[1][1] if len(said) > 1 else None
    return said[0][1], response, (conclusion(response) or None) if response else None


def _without_placeholders(text: str, num_images: int) -> str:
    """The text without `<image>` at its ends, as many as there are images, or none at all."""
    count = text.count(PLACEHOLDER)
    if count not in (0, num_images):
        raise RowError("misplaced <image>", f"{count} placeholders for {num_images} images")
    text = text.strip()
    while text.startswith(PLACEHOLDER):
        text = text.removeprefix(PLACEHOLDER).lstrip()
    while text.endswith(PLACEHOLDER):
        text = text.removesuffix(PLACEHOLDER).rstrip()
    if PLACEHOLDER in text:
        raise RowError("misplaced <image>", "an image inside the text; images stand before it")
    return text


def _image_names(row: Mapping[str, Any]) -> list[str]:
    given = row.get("image", row.get("images"))
    if given is None or given == []:
        raise RowError("missing image", "no image is named")
    names = given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str) or not name:
            raise RowError("wrong type", f"image: expected a file's name, got {show(name)}")
    return names


def _image(name: str, directories: Sequence[Path], limits: Limits) -> Path:
    """The path of a picture that decodes, in the first of the directories that has it."""
    paths = [directory / name for directory in directories]
    path = next((path for path in paths if os.path.exists(path)), paths[0])
    try:
        load_image(path, limits)
    except InputError as error:
        raise RowError(_IMAGE_REASONS.get(error.name, "corrupt image"), str(error)) from None
    except OSError as error:
        raise RowError("missing image", error.strerror or str(error)) from None
    return path


def _from_world(
    raw: object,
    question: str,
    response: str | None,
    answer: str | None,
    name: str,
    limits: RowLimits,
) -> Example:
    """The example of a reference, whose question and answer must be those of the row."""
    try:
        ref = read_ref(raw, limits.images)
        drawn = lookworld_example(ref, response)
    except RowError:
        raise
    except (LookAgainError, ValueError, TypeError) as error:
        raise RowError("lookworld", str(error)) from None
    if (drawn.question, drawn.answer) != (question, drawn.answer if answer is None else answer):
        raise RowError("lookworld", "the world draws another question there; draw the data again")
    return Example(
        images=drawn.images,
        question=question,
        response=response,
        answer=drawn.answer,
        id=name,
        lookworld=ref,
    )


def read_ref(raw: object, limits: Limits | None = None) -> LookWorldRef:
    """The reference of plain values. Raises RowError, UsageError."""
    if not isinstance(raw, dict) or set(raw) - {"split", "index", "family", "world"}:
        raise RowError("lookworld", "expected split, index, family and world")
    split, index, family = raw.get("split"), raw.get("index"), raw.get("family")
    if not isinstance(split, str) or split not in SPLIT_SEEDS:
        raise RowError("lookworld", f"split: expected {', '.join(SPLIT_SEEDS)}, got {show(split)}")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MAX_INDEX:
        raise RowError("lookworld", f"index: expected 0 to 2**40 - 1, got {show(index)}")
    if family is not None and family not in FAMILIES:
        raise RowError("lookworld", f"family: expected {', '.join(FAMILIES)}, got {show(family)}")
    world = read_world(raw.get("world", {}))
    for width, height in world.sizes:
        check_size(width, height, limits or Limits())
    return LookWorldRef(split=split, index=index, family=family, world=world)


def read_world(raw: object) -> WorldConfig:
    """The world whose fields differ from the default as `raw` says. Raises RowError, UsageError."""
    return WorldConfig(**typed_dials(raw))


def typed_dials(raw: object) -> dict[str, Any]:
    """The dials of the world that `raw` names, lists as tuples. Raises RowError."""
    known = {f.name: f.default for f in fields(WorldConfig) if f.default is not MISSING}
    if not isinstance(raw, dict) or set(raw) - set(known):
        raise RowError("lookworld", "world: expected the fields of a world config")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        made = _tuples(value)
        wanted = type(known[key])
        if isinstance(made, bool) is not (wanted is bool) or not isinstance(
            made, (int, float) if wanted is float else wanted
        ):
            raise RowError("lookworld", f"world.{key}: expected {wanted.__name__}")
        values[key] = made
    return values


def dials_of_text(text: str) -> dict[str, Any]:
    """Dials of the world as an option gives them: `name=value`, or a JSON object of several.

    Raises UsageError where it is neither, or names no dial.
    """
    name, _, value = text.partition("=")
    is_object = text.lstrip().startswith("{")
    try:
        dials = json.loads(text) if is_object else {name.strip(): json.loads(value)}
    except ValueError:
        raise UsageError(
            f"world: got {show(text)}\nexpected name=value, the value JSON, as clutter=0.5, "
            "or a JSON object"
        ) from None
    known = [f.name for f in fields(WorldConfig)]
    for unknown in [name for name in dials if name not in known]:
        raise UsageError(f"world: no dial {show(unknown)}\nexpected one of {', '.join(known)}")
    return dict(dials)


def world_of_text(text: str) -> WorldConfig:
    """The default world with the dials of an option. Raises UsageError."""
    try:
        return read_world(dials_of_text(text))
    except InputError as error:
        raise UsageError(f"world: {error}") from None


def _tuples(value: object) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _field(row: Mapping[str, Any], key: str, kind: type, **default: Any) -> Any:
    value = row.get(key)
    if value is None and default:
        return default["default"]
    if not isinstance(value, kind):
        raise RowError("wrong type", f"{key}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _id(row: Mapping[str, Any], default: str) -> str:
    value = row.get("id", default)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError("wrong type", f"id: expected text, got {type(value).__name__}")
    text = str(value)
    _check_text("id", text, 1000)
    return text


def _check_text(where: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise RowError("too long", f"{where}: {len(text)} characters, at most {max_chars}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("broken text", f"{where}: a lone surrogate is not Unicode") from None
