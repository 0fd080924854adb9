"""Conclusion and reasoning come apart the same way however the text arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from la_trt.serve.splitter import AnswerSplitter
from la_trt.tags import ALL_TAGS, conclusion


def split(*texts: str) -> tuple[str, str]:
    splitter = AnswerSplitter()
    pieces = [*(splitter.push(text) for text in texts), splitter.finish()]
    return "".join(p.reasoning for p in pieces), "".join(p.content for p in pieces)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Three circles.", "", "Three circles."),
        (" a  b\n", "", "a  b"),
        ("a < b <c> <SUM", "", "a < b <c> <SUM"),
        ("<SUMMARY>s</SUMMARY>\n<CONCLUSION> 3 </CONCLUSION>", "<SUMMARY>s</SUMMARY>\n", "3"),
        ("<REASONING>so <CONCL", "<REASONING>so <CONCL", ""),
        ("<CONCLUSION>1</CONCLUSION> x <CONCLUSION> 2", " x ", "1\n2"),
        ("before<REFLECTION>r</REFLECTION>after", "<REFLECTION>r</REFLECTION>after", "before"),
        ("", "", ""),
    ],
)
def test_what_belongs_where(text: str, reasoning: str, content: str) -> None:
    assert split(text) == (reasoning, content)
    assert split(*text) == (reasoning, content)


_TEXTS = st.lists(
    st.one_of(st.sampled_from([*ALL_TAGS, "<", "</", " ", "\n", "<SUM"]), st.text(max_size=4)),
    max_size=12,
).map("".join)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_TEXTS, st.lists(st.integers(0, 60), max_size=6))
def test_pieces_give_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    bounds = sorted({0, *(min(c, len(text)) for c in cuts), len(text)})
    parts = [text[a:b] for a, b in pairwise(bounds)]
    assert split(*parts) == split(text)


def test_content_is_the_conclusion_of_a_well_formed_answer() -> None:
    text = "<CAPTION>c</CAPTION><REASONING>r</REASONING><CONCLUSION>\n it is 4 \n</CONCLUSION>\n"
    assert split(text)[1] == conclusion(text) == "it is 4"
