"""Where the text of an answer belongs: the conclusion to the user, the rest to the reasoning."""

from __future__ import annotations

from dataclasses import dataclass

from la_trt.tags import ALL_TAGS

_LONGEST_TAG = max(map(len, ALL_TAGS))


@dataclass(slots=True)
class Piece:
    """Text that became certain. Either may be ''."""

    reasoning: str = ""
    content: str = ""


class AnswerSplitter:
    """Splits a growing text at its tags.

    `content` is what stands inside CONCLUSION, without the white space around it, and all text
    of an answer that has no tag (yet): a model that was not trained with tags answers as ever.
    Everything else, the other tags included, is `reasoning`. Several conclusions are joined by
    a line break.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._tagged = False
        self._space = ""  # held back until more content follows
        self._at_start = True
        self._has_content = False

    def push(self, text: str) -> Piece:
        """What became certain with this text."""
        self._held += text
        piece = Piece()
        while (found := self._next_tag()) is not None:
            start, tag = found
            self._plain(self._held[:start], piece)
            self._held = self._held[start + len(tag) :]
            self._tag(tag, piece)
        keep = self._possible_tag()
        self._plain(self._held[: len(self._held) - keep], piece)
        self._held = self._held[len(self._held) - keep :]
        return piece

    def finish(self) -> Piece:
        """What is left when no more text comes."""
        piece = Piece()
        self._plain(self._held, piece)
        self._held = ""
        return piece

    def _next_tag(self) -> tuple[int, str] | None:
        found = [(at, tag) for tag in ALL_TAGS if (at := self._held.find(tag)) >= 0]
        return min(found) if found else None

    def _possible_tag(self) -> int:
        """Characters at the end of the held text that may begin a tag."""
        at = self._held.rfind("<", max(0, len(self._held) - _LONGEST_TAG + 1))
        rest = self._held[at:] if at >= 0 else ""
        return len(rest) if rest and any(tag.startswith(rest) for tag in ALL_TAGS) else 0

    def _tag(self, tag: str, piece: Piece) -> None:
        self._inside = tag == "<CONCLUSION>"
        if self._inside:
            self._space = "\n" if self._has_content else ""
            self._at_start = True
        elif tag != "</CONCLUSION>":
            piece.reasoning += tag
        self._tagged = True

    def _plain(self, text: str, piece: Piece) -> None:
        if self._tagged and not self._inside:
            piece.reasoning += text
            return
        if self._at_start:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            piece.content += self._space + body
            self._space = ""
            self._at_start, self._has_content = False, True
        self._space += text[len(body) :]
