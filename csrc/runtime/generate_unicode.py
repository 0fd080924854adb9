"""Write unicode_tables.inc: what the `tokenizers` library makes of every code point.

    python csrc/runtime/generate_unicode.py > csrc/runtime/unicode_tables.inc

Classes are asked of its regular expressions, normal forms of its normaliser, so that the C++
tokenizer follows the library and not this Python's own version of Unicode.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers

_HANGUL = range(0xAC00, 0xD7A4)
_CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
_NFC, _NFD = normalizers.NFC(), normalizers.NFD()


def members(pattern: str) -> list[int]:
    """The code points that `pattern` matches, ascending."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = []
    for start in range(0, len(_CODES), 4096):
        text = "".join(map(chr, _CODES[start : start + 4096]))
        left = set("".join(piece for piece, _ in split.pre_tokenize_str(text)))
        found += [ord(c) for c in text if c not in left]
    return found


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive code points, first and last."""
    out: list[tuple[int, int]] = []
    for code in codes:
        if out and out[-1][1] == code - 1:
            out[-1] = (out[-1][0], code)
        else:
            out.append((code, code))
    return out


def combining_classes() -> list[tuple[int, int, int]]:
    """(first, last, class) of the marks that the library reorders."""
    out: list[tuple[int, int, int]] = []
    for code in _CODES:
        kind = unicodedata.combining(chr(code))
        if not kind or (code != 0x345 and not _reorders(code)):
            continue
        if out and out[-1][1:] == (code - 1, kind):
            out[-1] = (out[-1][0], code, kind)
        else:
            out.append((code, code, kind))
    return out


def _reorders(code: int) -> bool:
    """Whether the mark moves before U+0345, which has the highest class of all (240)."""
    return bool(_NFD.normalize_str("\u0345" + chr(code))[-1] == "\u0345")


def decompositions() -> dict[int, list[int]]:
    """Full canonical decompositions, Hangul left out."""
    out = {}
    for code in _CODES:
        parts = [ord(c) for c in _NFD.normalize_str(chr(code))]
        if parts != [code] and code not in _HANGUL:
            out[code] = parts
    return out


def compositions(full: dict[int, list[int]]) -> list[tuple[int, int, int]]:
    """(first, second, composite) of every pair that NFC puts together, Hangul left out."""
    out = []
    for code, parts in full.items():
        first = _NFC.normalize_str("".join(map(chr, parts[:-1])))
        pair = first + chr(parts[-1])
        if len(parts) > 1 and len(first) == 1 and _NFC.normalize_str(pair) == chr(code):
            out.append((ord(first), parts[-1], code))
    return sorted(out)


def table(kind: str, name: str, rows: Iterable[Sequence[int]]) -> str:
    """A constexpr array of braced rows, as many on a line as fit."""
    lines, line = [], ""
    for row in rows:
        cell = "{" + ", ".join(f"0x{v:x}" for v in row) + "},"
        if len(line) + len(cell) > 95:
            lines.append(line)
            line = ""
        line += (" " if line else "") + cell
    body = "\n".join(f"    {text}" for text in [*lines, line])
    return f"constexpr {kind} {name}[] = {{\n{body}\n}};\n"


def main() -> None:
    full = decompositions()
    print("// Written by generate_unicode.py. Do not edit.\n// clang-format off")
    for name, pattern in (("kLetters", r"\p{L}"), ("kNumbers", r"\p{N}"), ("kSpaces", r"\s")):
        print(table("Range", name, ranges(members(pattern))))
    print(table("ClassRange", "kCombining", combining_classes()))
    padded = [(code, *parts, *[0] * (4 - len(parts))) for code, parts in full.items()]
    print(table("Decomposition", "kDecompositions", padded))
    print(table("Composition", "kCompositions", compositions(full)))
    print("// clang-format on")


if __name__ == "__main__":
    main()
