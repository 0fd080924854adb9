"""Pieces of any length: where a stop string ends the text, and what is held back for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from la_trt.detokenize import TextStream


class Pieces:
    """A token table: the k-th token is the k-th piece."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def token_id(self, token: str) -> int | None:
        return None

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def streamed(*pieces: str | bytes, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """What each piece made certain, then what was left at the end; whether a stop string came."""
    table = Pieces([p.encode() if isinstance(p, str) else p for p in pieces])
    stream = TextStream(table, stop)
    found = []
    for token in range(len(pieces)):
        found.append(stream.push(token))
        if stream.stopped:
            break
    found.append(stream.flush())
    assert stream.text == "".join(found)
    return found, stream.stopped


@pytest.mark.parametrize(
    ("piece", "stop", "shown"),
    [
        ("abcd", ("bc", "abc"), ""),  # the one that begins first,
        ("abcd", ("abc", "bc"), ""),
        ("xabcd", ("c", "bcd", "ab"), "x"),
        ("xabcd", ("d", "abcd"), "x"),  # though it ends no earlier
        ("xabcd", ("bc", "bcd"), "xa"),  # two that begin together
        ("a.b.c", (".",), "a"),  # the first of several
        ("one STOP two END", ("END", "STOP"), "one "),
        ("aaab", ("aab", "b"), "a"),
    ],
)
def test_the_stop_string_that_begins_first_ends_the_text(
    piece: str, stop: tuple[str, ...], shown: str
) -> None:
    assert streamed(piece, "never asked for", stop=stop) == ([shown, ""], True)


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (("one S", "TO", "P two"), ("STOP",), ["one ", "", "", ""]),
        (("ab", "cd"), ("bc", "abc"), ["", "", ""]),
        (("xab", "cd"), ("cd", "bc"), ["xa", "", ""]),
        (("ab", "cx", "abcd", "e"), ("abcd",), ["", "abcx", "", ""]),
        (("xxa", "ab"), ("aab", "xxaac"), ["", "xx", ""]),  # the longer beginning is held
        (("grö", b"\xc3", b"\x9fe"), ("ß",), ["grö", "", "", ""]),
        ((b"a\xf0\x9f", b"\x99\x82b"), ("🙂",), ["a", "", ""]),
    ],
)
def test_stop_strings_across_pieces(
    pieces: tuple[str | bytes, ...], stop: tuple[str, ...], shown: list[str]
) -> None:
    assert streamed(*pieces, stop=stop) == (shown, True)


def test_what_was_held_back_is_shown_once_it_cannot_stop() -> None:
    assert streamed("see S", "TO", "NE S", "T", stop=("STOP",)) == (
        ["see ", "", "STONE ", "", "ST"],
        False,
    )
    assert streamed("bus T", "O", stop=("STOP",)) == (["bus T", "O", ""], False)
    assert streamed("ab", b"\xc3", stop=("abé",)) == (["", "", "ab�"], False)
