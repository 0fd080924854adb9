"""The rewards, worked by hand, and against LookWorld's own scores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from la_trt.errors import InputError
from la_trt.lookworld import FAMILIES, WorldConfig, is_correct, sample
from train.rewards import (
    RewardConfig,
    accuracy_reward,
    balance_reward,
    count_reflections,
    format_reward,
    reward_answer,
)


def said(conclusion: str) -> str:
    return (
        "<SUMMARY>s</SUMMARY><CAPTION>c</CAPTION><REASONING>r</REASONING>"
        f"<REFLECTION>x</REFLECTION><CONCLUSION>{conclusion}</CONCLUSION>"
    )


S, C, R = "<SUMMARY>s</SUMMARY>", "<CAPTION>c</CAPTION>", "<REASONING>r</REASONING>"
F, E, Z = "<REFLECTION>f</REFLECTION>", "<REFLECTION></REFLECTION>", "<CONCLUSION>z</CONCLUSION>"


@pytest.mark.parametrize(
    "text",
    [
        S + C + R + Z,
        S + C + R + F + Z,
        S + E + C + F + F + R + E + Z,
        f"\n{S}\n\n{C} {R}\n{F}\n{Z}\n",
        "<SUMMARY>a < b and <b>bold</b></SUMMARY>" + C + R + Z,
    ],
)
def test_format_holds(text: str) -> None:
    assert format_reward(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the answer is 3",
        S + C + R,  # no conclusion
        C + R + Z,  # no summary
        C + S + R + Z,  # order
        S + C + Z + R,
        S + S + C + R + Z,  # twice
        S + C + R + Z + Z,
        S + C + R + Z + F,  # a reflection after the conclusion
        F + S + C + R + Z,  # and before the summary
        S + C + "<REASONING>r" + F + "</REASONING>" + Z,  # nested
        S + C + "<REASONING>r<REFLECTION>f</REASONING></REFLECTION>" + Z,  # overlapping
        S + C + R + "<REFLECTION>f" + Z,  # unclosed
        S + C + R + "</REFLECTION>" + Z,
        S + C + R + Z[:-1],
        S + C + R + "<CONCLUSION> </CONCLUSION>",  # empty
        "<SUMMARY></SUMMARY>" + C + R + Z,
        "well, " + S + C + R + Z,  # text outside
        S + C + "hm" + R + Z,
        S + C + R + Z + "!",
        (S + C + R + Z).lower(),
    ],
)
def test_format_is_broken(text: str) -> None:
    assert format_reward(text) == 0.0


@pytest.mark.parametrize(
    ("conclusion", "answer"),
    [
        ("3", "3"),
        (" 3.\n", "3"),
        ("Three", "3"),
        ("3.0", "3"),
        ("The answer is 3.", "3"),
        ("there are three", "3"),
        ("answer: 3", "3"),
        ("1,000", "1000"),
        ("1/2", "0.5"),
        ("-7", "-7"),
        (r"So the answer is \boxed{12}.", "12"),
        ("None", "0"),
        ("YES.", "yes"),
        ("Yes, there is a red star.", "Yes"),
        ("no", "No"),
        ("Green", "green"),
        ("the colour is green", "green"),
        ('"Green"', "green"),
        ("stars", "star"),
        ("the left half", "left"),
        ("summer", "Summer"),
        ("Eiffel  Tower", "The Eiffel tower."),
        ("B", "B"),
        ("(b)", "B"),
        ("B. 42 degrees", "(B)"),
        ("The correct option is A", "A"),
        ("1 blue star, two red circles", "2 red circles, 1 blue star"),
        ("a blue star and 2 red circles.", "2 red circles, 1 blue star"),
        ("1 red circle, 1 blue star, 1 red circle", "2 red circles, 1 blue star"),
    ],
)
def test_right_answers(conclusion: str, answer: str) -> None:
    assert accuracy_reward(said(conclusion), answer) == 1.0


@pytest.mark.parametrize(
    ("conclusion", "answer"),
    [
        ("", "3"),
        ("13", "3"),
        ("3 or 4", "3"),
        ("4", "3"),
        ("3 circles", "3"),
        ("3.5", "3"),
        ("1/0", "3"),
        ("9" * 5000, "3"),
        ("Yes or No", "Yes"),
        ("No", "Yes"),
        ("Yesterday", "Yes"),
        ("0", "No"),
        ("greenish", "green"),
        ("red or green", "green"),
        ("mer", "summer"),
        ("C", "B"),
        ("bad", "B"),
        ("A cat", "A"),
        ("2 red circles", "2 red circles, 1 blue star"),
        ("1 red circle, 1 blue star", "2 red circles, 1 blue star"),
        ("2 red circles, 1 blue star, 1 black star", "2 red circles, 1 blue star"),
    ],
)
def test_wrong_answers(conclusion: str, answer: str) -> None:
    assert accuracy_reward(said(conclusion), answer) == 0.0


def test_accuracy_reads_the_last_complete_conclusion_alone() -> None:
    assert accuracy_reward("<REASONING>3</REASONING>", "3") == 0.0
    assert accuracy_reward("3", "3") == 0.0
    assert accuracy_reward("<CONCLUSION>3", "3") == 0.0
    assert accuracy_reward("<CONCLUSION>3</CONCLUSION><CONCLUSION>4</CONCLUSION>", "3") == 0.0
    assert accuracy_reward("<CONCLUSION>4</CONCLUSION><CONCLUSION>3</CONCLUSION>", "3") == 1.0
    with pytest.raises(InputError, match="empty"):
        accuracy_reward(said("3"), " . ")


@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy_agrees_with_lookworlds_score(family: str) -> None:
    world = replace(WorldConfig(), max_objects=6)
    drawn = [sample("train", i, world, family, want_image=False) for i in range(19)]
    answers = sorted({d.answer for d in drawn})
    wrong = 0
    for one in drawn:
        for answer in answers:
            for shown in (answer, answer.upper() + ".", f" {answer}", answer[:-1]):
                right = is_correct(one.question, shown, one.scene)
                assert accuracy_reward(said(shown), one.answer) == right, (one.answer, shown)
                wrong += not right
    assert wrong > 19


def test_balance_worked_by_hand() -> None:
    # 1 - |L / N - 100| / 100
    assert balance_reward(1, 100) == 1.0
    assert balance_reward(2, 200) == 1.0
    assert balance_reward(1, 50) == 0.5  # 1 - 50 / 100
    assert balance_reward(4, 100) == 0.25  # mean 25: 1 - 75 / 100
    assert balance_reward(1, 0) == 0.0  # empty: 1 - 100 / 100
    assert balance_reward(1, 200) == 0.0
    assert balance_reward(1, 350) == -1.5  # 1 - 250 / 100
    assert balance_reward(2, 60, ideal_length=40) == 0.75  # mean 30: 1 - 10 / 40
    assert balance_reward(1, 350, floor=-1.0) == -1.0
    assert balance_reward(1, 150, floor=-1.0) == 0.5


def test_balance_without_reflections_is_what_empty_ones_get() -> None:
    assert balance_reward(0, 0) == balance_reward(7, 0) == 0.0
    assert balance_reward(0, 0, none=-0.5) == -0.5


@pytest.mark.parametrize("values", [(-1, 0, 100), (1, -1, 100), (0, 5, 100), (1, 5, 0)])
def test_balance_refuses_what_cannot_be(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="balance_reward"):
        balance_reward(*values)


def test_reflections_are_counted_from_token_ids() -> None:
    o, c = 90, 91
    assert count_reflections([], o, c) == (0, 0)
    assert count_reflections([1, o, 2, 3, c, 4, o, c, 5], o, c) == (2, 2)
    assert count_reflections([o, 1, 2], o, c) == (1, 2)  # never closed
    assert count_reflections([o, 1, o, 2, c, 3], o, c) == (2, 2)
    assert count_reflections([c, 1], o, c) == (0, 0)
    assert count_reflections([1, 2], None, None) == (0, 0)


def test_total_is_the_weighted_sum_and_truncation_is_an_option() -> None:
    config = RewardConfig(accuracy_weight=2.0, format_weight=0.5, ideal_length=4)

    def total(config: RewardConfig, truncated: bool = False) -> float:
        return reward_answer(
            said("3"),
            "3",
            num_reflections=1,
            num_reflection_tokens=3,
            truncated=truncated,
            config=config,
        ).total

    assert total(config) == 2 + 0.5 + 0.75  # balance: 1 - |3 - 4| / 4
    assert total(config, truncated=True) == 0.0
    assert total(replace(config, truncated="keep"), truncated=True) == 3.25
    with pytest.raises(ValueError, match="truncated"):
        RewardConfig(truncated="drop")  # type: ignore[arg-type]


def test_each_reward_has_its_own_weight() -> None:
    config = RewardConfig(accuracy_weight=2.0, format_weight=0.5, balance_weight=8.0)

    def total(text: str, num_reflection_tokens: int = 0) -> float:
        return reward_answer(
            text,
            "3",
            num_reflections=num_reflection_tokens and 1,
            num_reflection_tokens=num_reflection_tokens,
            truncated=False,
            config=config,
        ).total

    malformed = "<CONCLUSION>3</CONCLUSION>"
    assert total(said("4")) == 0.5  # wrong, but well formed
    assert total(malformed) == 2.0  # right, but malformed
    assert total("neither", 100) == 8.0  # of the ideal length alone
    assert total(said("3"), 100) == 10.5
