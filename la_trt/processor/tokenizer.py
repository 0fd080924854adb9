"""Text to token ids and back, with control tokens only where the caller asks for them.

Byte-level BPE from `tokenizer.json`. Every entry of `added_tokens` is a control token. Plain
text goes through a tokeniser that has never heard of them, so no spelling of one inside user
text, however split or normalised, can come out as its id.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from la_trt.errors import CheckpointError, InputError
from la_trt.files.checkpoint import safe_file

MAX_FILE_BYTES = 128 << 20
# Bytes that no UTF-8 text contains; a vocabulary may lack them.
_NOT_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


def _byte_symbols() -> list[str]:
    """The 256 characters by which byte-level BPE spells bytes (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in symbols)
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [symbols[byte] for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
_SYMBOL_TO_BYTE = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


class Vocabulary:
    """The tokeniser of one model directory. Immutable; safe to share between threads."""

    def __init__(self, raw: dict[str, Any], *, where: str = "tokenizer.json") -> None:
        try:
            added = _added_tokens(raw)
            model = _plain_model(raw, added)
            plain = {**raw, "model": model, "added_tokens": []}
            plain.update(post_processor=None, truncation=None, padding=None)
            self._plain = Tokenizer.from_str(json.dumps(plain))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}", name=error.name) from None
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(
                f"{where}: not a usable tokenizer ({type(error).__name__}: {error})",
                name="E_TOKENIZER",
            ) from None
        self._where = where
        self._controls = {token["content"]: int(token["id"]) for token in added}
        self._control_ids = frozenset(self._controls.values())
        self._special_ids = frozenset(int(t["id"]) for t in added if t.get("special"))
        self._vocab: dict[str, int] = dict(model["vocab"])
        self._split = _control_pattern(added)
        self._bytes: dict[int, bytes] = {
            index: _symbol_bytes(token) for token, index in self._vocab.items()
        }
        self._bytes.update({index: text.encode() for text, index in self._controls.items()})
        self._size = max(self._bytes, default=-1) + 1

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """The vocabulary in a `tokenizer.json`. Raises CheckpointError naming the file."""
        return cls(read_json_object(path, MAX_FILE_BYTES), where=str(path))

    def __len__(self) -> int:
        """One more than the largest id in use."""
        return self._size

    @property
    def controls(self) -> dict[str, int]:
        """Every control token's text and id (a copy)."""
        return dict(self._controls)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that plain text never yields."""
        return self._control_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens marked special: not part of the visible answer (`<|im_end|>`)."""
        return self._special_ids

    def token_id(self, token: str) -> int | None:
        """The id of a control token, or of a vocabulary entry as spelt there; else None."""
        found = self._controls.get(token)
        return self._vocab.get(token) if found is None else found

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of `text`. With `control`, control tokens spelt in it become their ids.

        `control=True` is for text of the project's own making (templates, training targets),
        never for a user's. Raises InputError E_TEXT when the text is not valid Unicode.
        """
        if control:
            ids: list[int] = []
            for piece in self.split_controls(text):
                ids.extend([piece] if isinstance(piece, int) else self._encode_plain(piece))
            return ids
        return self._encode_plain(text)

    def split_controls(self, text: str) -> list[str | int]:
        """`text` cut at every control token: plain pieces (str) and control ids (int)."""
        if self._split is None:
            return [text] if text else []
        pieces: list[str | int] = []
        end = 0
        for match in self._split.finditer(text):
            if match.start() > end:
                pieces.append(text[end : match.start()])
            pieces.append(self._controls[match.group()])
            end = match.end()
        if end < len(text):
            pieces.append(text[end:])
        return pieces

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; empty for an id without a token."""
        return self._bytes.get(token_id, b"")

    def decode(self, ids: Iterable[int], *, skip: Collection[int] = ()) -> str:
        """Text of `ids`, those in `skip` left out; broken UTF-8 becomes U+FFFD."""
        data = b"".join(self.token_bytes(int(i)) for i in ids if int(i) not in skip)
        return data.decode("utf-8", errors="replace")

    def stream(self, *, skip: Collection[int] = ()) -> StreamDecoder:
        """A fresh incremental decoder."""
        return StreamDecoder(self, skip=skip)

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text: character {error.start} is a lone surrogate, not valid Unicode\n"
                "remove it or send the text as UTF-8",
                name="E_TEXT",
            ) from None
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise CheckpointError(
                f"{self._where}: plain text encodes to a control token", name="E_TOKENIZER"
            )
        return ids


class StreamDecoder:
    """Text of a growing sequence of ids; a character appears once its last byte is there.

    The pieces joined equal `Vocabulary.decode` of the same ids.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip: Collection[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._skip = frozenset(skip)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """What became printable with this token, maybe ''."""
        if token_id in self._skip:
            return ""
        return self._decoder.decode(self._vocabulary.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character, else ''. The decoder is then empty."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError naming the file."""
    text = read_text_file(path, max_bytes)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})", name="E_JSON") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object", name="E_JSON")
    return raw


def read_text_file(path: Path, max_bytes: int, *, name: str = "E_JSON") -> str:
    """The UTF-8 text of a file in a model directory.

    Raises CheckpointError: as `safe_file`, E_TOO_LARGE, and `name` where it cannot be read.
    """
    safe_file(path.parent, path.name)
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= max_bytes else ""
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable text ({error})", name=name) from None
    if size > max_bytes:
        raise CheckpointError(
            f"{path}: {size} bytes, more than the {max_bytes} allowed", name="E_TOO_LARGE"
        )
    return text


def _symbol_bytes(token: str) -> bytes:
    if all(symbol in _SYMBOL_TO_BYTE for symbol in token):
        return bytes(_SYMBOL_TO_BYTE[symbol] for symbol in token)
    return token.encode()


def _added_tokens(raw: dict[str, Any]) -> list[dict[str, Any]]:
    added = raw.get("added_tokens") or []
    contents, ids = set(), set()
    for token in added:
        content, index = token["content"], token["id"]
        if not isinstance(content, str) or not content:
            raise CheckpointError("added_tokens: an empty token", name="E_TOKENIZER")
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointError(f"added_tokens: id {index!r} of {content!r}", name="E_TOKENIZER")
        if content in contents or index in ids:
            raise CheckpointError(
                f"added_tokens: {content!r} (id {index}) appears twice", name="E_TOKENIZER"
            )
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise CheckpointError(
                f"added_tokens: {content!r} uses single_word, lstrip or rstrip, not supported",
                name="E_TOKENIZER",
            )
        contents.add(content)
        ids.add(index)
    return list(added)


def _plain_model(raw: dict[str, Any], added: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The BPE model without the control tokens, checked to spell every byte."""
    model: dict[str, Any] = raw["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"model type {model.get('type')!r}, expected byte-level BPE", name="E_TOKENIZER"
        )
    if "ByteLevel" not in json.dumps(raw.get("pre_tokenizer")):
        raise CheckpointError("pre_tokenizer is not byte-level", name="E_TOKENIZER")
    controls = {token["content"]: token["id"] for token in added}
    vocab = {token: index for token, index in model["vocab"].items() if token not in controls}
    taken = set(controls.values()) & set(vocab.values())
    if taken:
        raise CheckpointError(
            f"id {min(taken)} belongs to a control token and to an ordinary one",
            name="E_TOKENIZER",
        )
    missing = [b for b, s in enumerate(BYTE_SYMBOLS) if s not in vocab and b not in _NOT_UTF8]
    if missing:
        raise CheckpointError(
            f"the vocabulary cannot spell byte 0x{missing[0]:02x} ({len(missing)} bytes missing)",
            name="E_TOKENIZER",
        )
    return {**model, "vocab": vocab}


def _control_pattern(added: Sequence[dict[str, Any]]) -> re.Pattern[str] | None:
    if not added:
        return None
    longest_first = sorted((t["content"] for t in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))
