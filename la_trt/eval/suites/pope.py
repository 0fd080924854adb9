"""POPE: is an object in the image? Asked of random, popular and adversarial absent objects.

Li et al., *Evaluating Object Hallucination in Large Vision-Language Models* (2023). The files
`coco_pope_{random,popular,adversarial}.json` hold one object a line: `question_id`, `image`,
`text`, `label`; exports with `question`, `answer` and `category` are read as well.

"Yes" is the positive class. The published script takes every answer without "no" or "not" for a
yes; here an answer that is neither (see `parse.yes_no`) is wrong and no yes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from la_trt.eval.images import file_below, image_of
from la_trt.eval.items import IMAGE, DataSource, Item, Loaded, Score, single
from la_trt.eval.parse import final_answer, yes_no
from la_trt.eval.rows import RowError, data_files, read_items, text_of
from la_trt.eval.stats import Array, Metric, Sums, divide

SETTINGS = ("random", "popular", "adversarial")
_INSTRUCTION = "Please answer yes or no."


class Pope:
    """Precision, recall, F1, accuracy and yes share in each setting; the paper's mean F1 first."""

    name = "pope"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        files = data_files(source.data, self.name)
        instruction = _INSTRUCTION if source.instruction is None else source.instruction

        def make(row: Mapping[str, Any], path: Path, number: int) -> Item:
            expected = text_of(row, "label", "answer").lower()
            if expected not in ("yes", "no"):
                raise RowError(f"label {expected[:40]!r}, expected yes or no")
            question = text_of(row, "text", "question")
            if not question:
                raise RowError("no text")
            setting = _setting(row, path)
            id_ = text_of(row, "question_id", "id") or str(number)
            return Item(
                id=f"{setting}-{id_}",
                unit=f"{setting}-{id_}",
                category=setting,
                parts=(IMAGE, f"{question}\n{instruction}".strip()),
                images=(_image(row, source.images or path.parent),),
                expected=expected,
            )

        return read_items(files, self.name, (), make)

    def score(self, item: Item, answer: str) -> Score:
        said = yes_no(answer)
        return Score(
            said=said, correct=said == item.expected, counts=counts(said == "yes", said, item)
        )

    unit = staticmethod(single)

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        return pope_metrics([c for c in (*SETTINGS, "all") if c in categories])


def counts(yes: bool, said: str, item: Item) -> dict[str, float]:
    """What the metrics of yes-no questions add up."""
    positive = item.expected.lower() == "yes"
    return {
        "n": 1.0,
        "right": float(said == item.expected.lower()),
        "yes": float(yes),
        "positive": float(positive),
        "hit": float(yes and positive),
    }


def pope_metrics(settings: Sequence[str], prefix: str = "") -> list[Metric]:
    """Mean F1, then each setting's numbers; `prefix` goes before a setting's category.

    A setting that asks for nothing that is there has no F1, precision or recall, and no part in
    the mean.
    """
    places = {setting: f"{prefix}{setting}" for setting in settings}

    def mean_f1(sums: Sums) -> Array:
        scores = np.stack([f1(sums, (place,)) for place in all_places])
        has_positives = np.stack([sums.total("positive", (place,)) > 0 for place in all_places])
        return divide((scores * has_positives).sum(axis=0), has_positives.sum(axis=0, dtype=float))

    all_places = tuple(places.values())
    found = [Metric(name="POPE F1, mean", of=mean_f1, categories=all_places, needs="positive")]
    for setting, place in places.items():
        for name, above, below in (
            ("F1", "", ""),
            ("precision", "hit", "yes"),
            ("recall", "hit", "positive"),
            ("accuracy", "right", "n"),
            ("yes share", "yes", "n"),
        ):
            found.append(
                Metric(
                    name=f"POPE {name}, {setting}",
                    of=_quotient(above, below, place) if above else _f1_of(place),
                    categories=(place,),
                    needs="positive" if name in ("F1", "precision", "recall") else None,
                )
            )
    return found


def f1(sums: Sums, categories: Sequence[str]) -> Array:
    """2 hit / (yes + positive), which is F1; 0 where nothing is or was said to be there."""
    hit = sums.total("hit", categories)
    return divide(2 * hit, sums.total("yes", categories) + sums.total("positive", categories))


def _quotient(above: str, below: str, place: str) -> Any:
    return lambda sums: sums.ratio(above, below, (place,))


def _f1_of(place: str) -> Any:
    return lambda sums: f1(sums, (place,))


def _setting(row: Mapping[str, Any], path: Path) -> str:
    """From the row's category, else from the file's name, else `all`."""
    named = text_of(row, "category", "setting").lower()
    for place in (named, path.stem.lower()):
        for setting in SETTINGS:
            if setting in place:
                return setting
    return "all"


def _image(row: Mapping[str, Any], directory: Path) -> Path | bytes:
    value = row.get("image")
    if value in (None, "") and row.get("image_source"):
        return file_below(directory, text_of(row, "image_source") + ".jpg")
    return image_of(value, directory)
