"""Results as Markdown: one page with every table, what was aimed at first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from la_trt.lookworld import FAMILIES
from train.experiments.plan import ATTENTION

Row = Sequence[str]
MISSING = "missing"
_INVERTED = "test-inverted"


def page(values: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole page. `pictures`: files beside it, in the order in which they are shown."""
    parts = ["# What re-attention does on the small model", _preface(values)]
    if pictures:
        parts += [f"![{name}]({name})" for name in pictures]
    parts += [
        "## Targets",
        _targets(values["targets"]),
        "## Variants, test-inverted",
        _variants(values, _INVERTED),
        "## Variants, test",
        _variants(values, "test"),
        "## Against text-only, test-inverted",
        _differences(values),
        "## By share of the visual tokens that ROUTE puts in",
        _percents(values),
        "## Along the dials of the world",
        _dials(values),
        "## Accuracy by family, test-inverted",
        _families(values),
        "## Whether reflections look",
        _looking(values["looking"], values["seeds"]),
        "## Errors planted for reflections to find",
        _planting(values["planting"], values["seeds"]),
        "## Attention to the image",
        _attention(values["attention"], values["seeds"]),
        "## Cost",
        _cost(values),
        "## Answers that the variants learned from",
        _answers(values["answers"]),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table; a line that says so where there are no rows."""
    if not rows:
        return "Not run yet."
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(of: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A value with its interval, in percent."""
    if of is None:
        return "-"
    form = "{:+.1f} ({:+.1f} to {:+.1f})" if signed else "{:.1f} ({:.1f} to {:.1f})"
    return form.format(*(100 * of[name] for name in ("value", "low", "high")))


def _preface(values: Mapping[str, Any]) -> str:
    num, world = len(values["seeds"]), values["world"]
    dials = ", ".join(f"{name} {value:g}" for name, value in world.items()) or "the default one"
    text = (
        f"Written by `make experiments`. Means over {num} seed{'s' if num > 1 else ''}; in "
        "brackets 95 % intervals of a bootstrap over questions and seeds, paired where two "
        f"variants are compared. {values['num_per_family']} questions of each family. The world, "
        f"unless a dial says otherwise: {dials}. `results.json` holds every number."
    )
    if values["missing"]:
        text += (
            f" **{len(values['missing'])} stages have not been run**: what they would say is "
            f'called "{MISSING}", and a row that lacks seeds names those that it has.'
        )
    if values["stale"]:
        text += (
            f" **{len(values['stale'])} stages were run by another version of the code**: "
            f"{', '.join(values['stale'][:8])}{' ...' if len(values['stale']) > 8 else ''}."
        )
    return text


def _rows(
    of: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    cells: Callable[[Mapping[str, Any]], Row],
    width: int,
) -> list[Row]:
    """A row each: its name, with its seeds where some are missing, and its cells, `width` with
    the name; what has no result says so in every cell."""
    rows: list[Row] = []
    for name, found in of.items():
        if not found:
            rows.append((name, *[MISSING] * (width - 1)))
            continue
        own = found["seeds"]
        lacks = f" (seed {', '.join(map(str, own))} only)" if len(own) < len(seeds) else ""
        rows.append((name + lacks, *cells(found)))
    return rows


def _of(values: Mapping[str, Any], split: str) -> dict[str, Any]:
    """What there is of each, by split, of one split."""
    return {name: of.get(split) or {} for name, of in values.items()}


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    words = {True: "yes", False: "**no**", None: "-"}
    return table(
        ("wanted", "found", "met"), [(t["wanted"], t["found"], words[t["met"]]) for t in targets]
    )


def _variants(values: Mapping[str, Any], split: str) -> str:
    def cells(r: Mapping[str, Any]) -> Row:
        return (
            percent(r["accuracy"]),
            f"{100 * r['POPE F1']:.1f}",
            percent(r["CHAIRi"]),
            percent(r["CHAIRs"]),
            percent(r["recall"]),
            f"{100 * r['format_frac']:.1f}",
        )

    head = ("variant", "accuracy", "POPE F1", "CHAIRi", "CHAIRs", "recall", "format")
    return table(head, _rows(_of(values["variants"], split), values["seeds"], cells, len(head)))


def _differences(values: Mapping[str, Any]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        return (
            percent(of["accuracy"], signed=True),
            percent(of["CHAIRi"], signed=True),
            ", ".join(f"{100 * v:+.1f}" for v in of["accuracy"]["by_seed"]),
        )

    head = ("variant", "accuracy, points", "CHAIRi, points", "accuracy by seed")
    found = _of(values["differences"], _INVERTED)
    return table(head, _rows(found, values["seeds"], cells, len(head)))


def _percents(values: Mapping[str, Any]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        return (
            percent(of["accuracy"]),
            percent(of["CHAIRi"]),
            f"{of['reinjected_tokens_mean']:.1f}",
            f"{of['seconds_mean']:.2f}",
        )

    head = ("m, percent", "accuracy", "CHAIRi", "tokens put in", "seconds")
    found = {
        name.removeprefix("ROUTE "): of
        for name, of in _of(values["variants"], _INVERTED).items()
        if name.startswith("ROUTE ")
    }
    return table(head, _rows(found, values["seeds"], cells, len(head)))


def _dials(values: Mapping[str, Any]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        return (
            percent(of["text-only"]),
            percent(of["COPY"]),
            percent(of["difference"], signed=True),
            percent(of["CHAIRi difference"], signed=True),
        )

    head = ("dial", "text-only", "COPY", "COPY - text-only", "CHAIRi, points")
    return table(head, _rows(values["dials"], values["seeds"], cells, len(head)))


def _families(values: Mapping[str, Any]) -> str:
    head = ("variant", *FAMILIES)

    def cells(of: Mapping[str, Any]) -> Row:
        return tuple(f"{100 * of['families'][f]['value']:.0f}" for f in FAMILIES)

    found = _of(values["variants"], _INVERTED)
    return table(head, _rows(found, values["seeds"], cells, len(head)))


def _attention(attention: Mapping[str, Any], seeds: Sequence[int]) -> str:
    if not attention:
        return table((), [])
    head = ("variant", "before a reflection", "its first 20 tokens", "inside it", "R^2 of theory")

    def cells(of: Mapping[str, Any]) -> Row:
        names = ("before_reflection", "after_reflection", "inside_reflection")
        return (*(_number(of[name], 4) for name in names), _number(of["theory_r2"], 3))

    found = {name: attention.get(name, {}) for name in ATTENTION}
    shares = table(head, _rows(found, seeds, cells, len(head)))
    laws = table(
        ("law", *attention),
        [
            (law, *(_law(of["laws"].get(law)) for of in attention.values()))
            for law in next(iter(attention.values()))["laws"]
        ],
    )
    return (
        f"Mean attention weight on all visual tokens together.\n\n{shares}\n\n"
        "R^2 (and length in tokens) of laws fitted up to the first reflection; the theory, "
        "L_c / L_total of Theorem 3.1, has no parameter and covers the whole answer.\n\n" + laws
    )


def _looking(looking: Mapping[str, Any], seeds: Sequence[int]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        return (
            _share(of["captions_right"]),
            _share(of["accuracy_beside_right_caption"]),
            _share(of["accuracy_beside_wrong_caption"]),
            f"{_share(of['by_prior'])} of {of['num_misnamed']}",
            _share(of["repeated"]),
            f"{_share(of['mended'])} of {of['num_misread']}",
            _share(of["spoiled"]),
        )

    head = (
        *("variant", "captions right", "accuracy beside those", "beside the others"),
        *("misnamed by the prior", "repeated", "mended", "spoiled"),
    )
    return (
        "Test-inverted, percent. Misnamed by the prior: of the objects whose colour or shape the "
        "caption has wrong, those that it gives their shape's usual colour. Every object that a "
        "reflection names is held against the caption and the image. Repeated: said as in the "
        "caption. Mended: the caption has it wrong, the reflection right. Spoiled: the other way "
        "round.\n\n" + table(head, _rows(looking, seeds, cells, len(head)))
    )


def _planting(planting: Mapping[str, Any], seeds: Sequence[int]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        lie, truth = of["planted"], of["as it is"]
        return (
            f"{_share(lie['mended'])} of {lie['num_misread']}",
            f"{_share(lie['accuracy'])} of {lie['num_answers']}",
            _share(truth["accuracy"]),
            _share(truth["spoiled"]),
        )

    head = ("variant", "mended", "accuracy with the error", "without", "spoiled without")
    return (
        "Test-inverted, percent. The answer begins as the world's own response does, up to and "
        "with the reflection's tag, with one wrong entry in its caption, from which its reasoning "
        "follows to another answer, or without. The model goes on. Mended, spoiled: as above.\n\n"
        + table(head, _rows(planting, seeds, cells, len(head)))
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _law(of: Mapping[str, Any] | None) -> str:
    if of is None:
        return "-"
    length = "no decay" if of["length"] is None else f"{of['length']:.0f}"
    return f"{of['r2']:.3f} ({length})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cost(values: Mapping[str, Any]) -> str:
    def cells(of: Mapping[str, Any]) -> Row:
        return (
            f"{of['seconds_mean']:.2f}",
            f"{of['tokens_mean']:.1f}",
            f"{of['reflections_mean']:.2f}",
            f"{of['reinjected_tokens_mean']:.1f}",
            f"{100 * of['truncated_frac']:.1f}",
        )

    head = ("variant", "seconds a question", "tokens", "reflections", "tokens put in", "cut off, %")
    found = _of(values["variants"], _INVERTED)
    return (
        "Seconds from question to answer with 32 questions decoded at a time and another stage on "
        "the other core: to compare with each other, not with the paper's.\n\n"
        + table(head, _rows(found, values["seeds"], cells, len(head)))
    )


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    names = {"zero": "after BRPO", "cold": "cold start"}
    rows = [
        (
            f"{names[a['of']]}, seed {a['seed']}",
            *(str(a[key]) for key in ("asked", "kept", "corrected", "dropped")),
            f"{a['reflections_mean']:.2f}",
        )
        for a in answers
    ]
    head = ("answers of", "asked", "kept", "corrected", "dropped", "reflections")
    return table(head, rows)
