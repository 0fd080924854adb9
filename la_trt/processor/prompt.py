"""A question with pictures as token ids, patches and positions.

Control tokens come from the template and from real attachments alone. Before the template
sees a user's text, every character that occurs in any control token is swapped for a private
character that occurs nowhere else; the rendered text is cut at control tokens, and only then
are the characters swapped back and encoded as plain text. So no text, system prompts
included, can spell a control token, not even together with the template's own characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from la_trt.config import ModelConfig
from la_trt.errors import CheckpointError, ImageError, InputError
from la_trt.limits import Limits
from la_trt.processor.features import ImageConfig, count_visual_tokens, preprocess
from la_trt.processor.image import ImageSource, load_image
from la_trt.processor.mrope import prompt_positions
from la_trt.processor.template import ChatTemplate
from la_trt.processor.tokenizer import Vocabulary
from la_trt.processor.types import ImageFeatures, Prompt

IMAGE_PAD = "<|image_pad|>"
ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]
# Supplementary private use areas; U+F0000 and on.
_PRIVATE = range(0xF0000, 0x10FFFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Checked messages (roles, texts, image slots) and the images that fill the slots."""

    messages: list[dict[str, Any]]
    images: list[ImageSource]


class Processor:
    """Turns prompts and images into what an engine takes. Immutable; safe between threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        image_config: ImageConfig | None = None,
        template: ChatTemplate | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.image_config = image_config or ImageConfig()
        self.template = template or ChatTemplate()
        self.limits = limits or Limits()
        image_pad = vocabulary.controls.get(IMAGE_PAD)
        if image_pad is None:
            raise CheckpointError(
                f"tokenizer.json: no added token {IMAGE_PAD}\n"
                "give the directory of a Qwen2.5-VL checkpoint",
                name="E_TOKENIZER",
            )
        self.image_token_id = image_pad
        self._control_characters = sorted({c for text in vocabulary.controls for c in text})

    @classmethod
    def from_pretrained(cls, directory: Path | str, limits: Limits | None = None) -> Processor:
        """The processor of a checkpoint or bundle directory.

        Reads tokenizer.json, preprocessor_config.json, the chat template where there is one, and
        config.json where there is one, to compare. Raises CheckpointError naming the file.
        """
        root = Path(directory)
        if not root.is_dir():
            raise CheckpointError(f"{root}: no such directory", name="E_MISSING_FILE")
        processor = cls(
            Vocabulary.from_file(root / "tokenizer.json"),
            ImageConfig.from_directory(root),
            ChatTemplate.from_directory(root),
            limits,
        )
        if (root / "config.json").exists():
            processor.check_model(ModelConfig.from_file(root / "config.json"))
        return processor

    def check_model(self, config: ModelConfig) -> None:
        """Nothing; raises CheckpointError when the model expects other patches or token ids."""
        vision, images = config.vision, self.image_config
        pairs = {
            "image_token_id": (config.image_token_id, self.image_token_id),
            "patch_size": (vision.patch_size, images.patch_size),
            "temporal_patch_size": (vision.temporal_patch_size, images.temporal_patch_size),
            "spatial_merge_size": (vision.spatial_merge_size, images.merge_size),
        }
        for field, (model, ours) in pairs.items():
            if model != ours:
                raise CheckpointError(
                    f"config.json: {field} is {model}, the tokenizer and preprocessor say {ours}\n"
                    "the files come from different checkpoints",
                    name="E_CONFIG",
                )
        if len(self.vocabulary) > config.text.vocab_size:
            raise CheckpointError(
                f"config.json: vocab_size is {config.text.vocab_size}, tokenizer.json has ids up "
                f"to {len(self.vocabulary) - 1}",
                name="E_CONFIG",
            )

    def __call__(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        system: str | None = None,
        *,
        max_length: int | None = None,
        reserved: int = 0,
    ) -> Prompt:
        """The tokenised request.

        `prompt`: a question (images stand before it), or messages of `role` and `content`, a
        text or a list of `{"type": "text", "text": ...}` and `{"type": "image"}`; an image part
        may carry its picture under "image", else it takes the next of `images`.
        `max_length` refuses longer prompts (E_CONTEXT_LENGTH) before any patch is made, `reserved`
        tokens of it being the answer's.
        Raises InputError.
        """
        talk = conversation(prompt, images, system)
        loaded = self.load(talk.images)
        pieces = self._pieces(talk.messages)
        sizes = [
            count_visual_tokens(image.height, image.width, self.image_config) for image in loaded
        ]
        input_ids, visual_row = self._ids(pieces, sizes)
        if max_length is not None and len(input_ids) + reserved > max_length:
            answer = f" and {reserved} for the answer are" if reserved else ","
            fewer = "ask for fewer tokens, " if reserved else ""
            raise InputError(
                f"prompt: {len(input_ids)} tokens, {sum(sizes)} of them visual{answer} more than "
                f"the {max_length} that fit\n{fewer}shorten the text or send smaller images",
                name="E_CONTEXT_LENGTH",
            )
        features = [preprocess(image, self.image_config) for image in loaded]
        grids = np.array([f.grid_thw for f in features], dtype=np.int64).reshape(-1, 3)
        pixels = [f.pixel_values for f in features]
        position_ids, next_position = prompt_positions(
            visual_row, grids, self.image_config.merge_size
        )
        empty = np.zeros((0, self.image_config.patch_dim), dtype=np.float32)
        return Prompt(
            text="".join(p if isinstance(p, str) else self.vocabulary.decode([p]) for p in pieces),
            input_ids=input_ids,
            visual_row=visual_row,
            position_ids=position_ids,
            pixel_values=pixels[0] if len(pixels) == 1 else np.concatenate([empty, *pixels]),
            image_grid_thw=grids,
            next_position=next_position,
        )

    def load(self, images: Sequence[ImageSource]) -> list[Any]:
        """The pictures as upright RGB images, within the limits of a request."""
        if len(images) > self.limits.max_images:
            raise InputError(
                f"images: {len(images)} given, at most {self.limits.max_images} a request",
                name="E_IMAGE_COUNT",
            )
        loaded, pixels = [], 0
        for index, source in enumerate(images):
            try:
                image = load_image(source, self.limits)
            except InputError as error:
                where = f"image {index + 1} of {len(images)}: " if len(images) > 1 else ""
                raise ImageError(f"{where}{error}", name=error.name, index=index) from None
            pixels += image.width * image.height
            if pixels > self.limits.max_request_pixels:
                raise InputError(
                    f"images: more than {self.limits.max_request_pixels} pixels together\n"
                    "scale them down",
                    name="E_IMAGE_TOO_LARGE",
                )
            loaded.append(image)
        return loaded

    def image(self, source: ImageSource) -> ImageFeatures:
        """One picture's patches, grid, sizes and number of visual tokens."""
        return preprocess(load_image(source, self.limits), self.image_config)

    def _pieces(self, messages: list[dict[str, Any]]) -> list[str | int]:
        """Plain texts and control ids of the rendered conversation."""
        texts = [text for message in messages for text in _texts(message)]
        hide, show = self._shield(texts)
        shielded = [_map_texts(message, hide) for message in messages]
        rendered = self.template.render(shielded, add_generation_prompt=True)
        pieces = self.vocabulary.split_controls(rendered)
        return [p.translate(show) if isinstance(p, str) else p for p in pieces]

    def _shield(self, texts: Sequence[str]) -> tuple[dict[int, int], dict[int, int]]:
        """Tables that swap the characters of control tokens for unused private ones, and back."""
        taken = set(self.template.source).union(self._control_characters, *texts)
        free = (code for code in _PRIVATE if chr(code) not in taken)
        hide = {ord(character): next(free, -1) for character in self._control_characters}
        if -1 in hide.values():
            raise InputError("text: uses every private character of Unicode", name="E_TEXT")
        return hide, {code: original for original, code in hide.items()}

    def _ids(
        self, pieces: Sequence[str | int], sizes: Sequence[int]
    ) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
        """`input_ids` (T,) with each image slot expanded, and `visual_row` (T,)."""
        slots = sum(piece == self.image_token_id for piece in pieces)
        if slots != len(sizes):
            raise CheckpointError(
                f"chat template: made {slots} image slots for {len(sizes)} images",
                name="E_TEMPLATE",
            )
        ids: list[int] = []
        visual: list[bool] = []
        remaining = iter(sizes)
        for piece in pieces:
            if piece == self.image_token_id:
                new = [self.image_token_id] * next(remaining)
            elif isinstance(piece, int):
                new = [piece]
            else:
                new = self.vocabulary.encode(piece)
            ids.extend(new)
            visual.extend([piece == self.image_token_id] * len(new))
        if not ids:
            raise CheckpointError("chat template: rendered nothing", name="E_TEMPLATE")
        is_visual = np.array(visual)
        rows = np.where(is_visual, np.cumsum(is_visual) - 1, -1).astype(np.int64)
        return np.array(ids, dtype=np.int64), rows


def conversation(
    prompt: str | Sequence[Message], images: Sequence[ImageSource] = (), system: str | None = None
) -> Conversation:
    """Checked messages with every image slot filled. Raises InputError E_MESSAGES naming the field.

    Images that no part asks for stand before the first user text.
    """
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise _bad("images", f"expected a list of images, got {type(images).__name__}")
    if isinstance(prompt, str):
        if not prompt.strip() and not images:
            raise InputError("prompt: empty\nask something", name="E_PROMPT")
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise _bad("messages", "expected a non-empty list")
    rest = list(images)
    used: list[ImageSource] = []
    messages = [_message(m, f"messages[{i}]", rest, used) for i, m in enumerate(prompt)]
    if rest and not used:
        users = [m for m in messages if m["role"] == "user"]
        if not users:
            raise _bad("messages", "images were given, but there is no user message for them")
        text = users[0]["content"]
        parts = [{"type": "text", "text": text}] if isinstance(text, str) else text
        users[0]["content"] = [*({"type": "image"} for _ in rest), *parts]
        used, rest = rest, []
    if rest:
        raise _bad("images", f"{len(rest)} more than the image parts in messages")
    if any(m["role"] == "system" for m in messages[1:]):
        raise _bad("messages", "a system message may only stand first")
    if system is not None:
        if messages[0]["role"] == "system":
            raise _bad("system", "messages already begin with a system message")
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
    return Conversation(messages=messages, images=used)


def _bad(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}", name="E_MESSAGES")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(where, f"expected text, got {type(value).__name__}")
    return value


def _message(
    raw: object, where: str, rest: list[ImageSource], used: list[ImageSource]
) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise _bad(where, f"expected an object with role and content, got {type(raw).__name__}")
    unknown = set(raw) - {"role", "content"}
    if unknown:
        raise _bad(where, f"unknown field {sorted(map(str, unknown))[0]!r:.60}")
    role = raw.get("role")
    if role not in ROLES:
        raise _bad(f"{where}.role", f"expected one of {', '.join(ROLES)}, got {role!r:.60}")
    content = raw.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise _bad(f"{where}.content", f"expected text or parts, got {type(content).__name__}")
    parts = [_part(p, f"{where}.content[{i}]", rest, used) for i, p in enumerate(content)]
    if role != "user" and any(part["type"] == "image" for part in parts):
        raise _bad(where, "only a user message may hold images")
    return {"role": role, "content": parts}


def _part(
    raw: object, where: str, rest: list[ImageSource], used: list[ImageSource]
) -> dict[str, str]:
    if not isinstance(raw, Mapping):
        raise _bad(where, f"expected an object with a type, got {type(raw).__name__}")
    kind = raw.get("type")
    unknown = set(raw) - {"type", "text" if kind == "text" else "image"}
    if kind not in ("text", "image") or unknown:
        what = f"type {kind!r:.60}" if kind not in ("text", "image") else "these fields"
        raise _bad(where, f"{what} not supported, expected a text or an image part")
    if kind == "text":
        return {"type": "text", "text": _text(raw.get("text"), f"{where}.text")}
    picture = raw.get("image")
    if picture is None:
        if not rest:
            raise _bad(where, "no image was given for this part")
        picture = rest.pop(0)
    elif isinstance(picture, str):
        raise _bad(f"{where}.image", "expected bytes, a Path or a PIL image, got text")
    used.append(picture)
    return {"type": "image"}


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _map_texts(message: dict[str, Any], table: dict[int, int]) -> dict[str, Any]:
    """The message with its texts translated; the rest (role, types) is our own."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content.translate(table)}
    parts = [
        {**p, "text": p["text"].translate(table)} if p["type"] == "text" else p for p in content
    ]
    return {**message, "content": parts}
