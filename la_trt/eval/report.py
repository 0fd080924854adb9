"""The report of a run and the comparison of two, as plain values and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from la_trt.errors import InputError
from la_trt.eval.items import BadRow, Item, Score, Suite
from la_trt.eval.lookworld import well_formed
from la_trt.eval.stats import Unit, defined, estimate, mcnemar_p, paired
from la_trt.eval.suites import suite as suite_named
from la_trt.files.json_lines import differences

NUM_RESAMPLES = 2000
_SHOWN_BAD_ROWS = 100


def make_report(
    suite: Suite,
    items: Sequence[Item],
    answers: Mapping[str, Mapping[str, Any]],
    bad_rows: Sequence[BadRow],
    settings: Mapping[str, Any],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Everything that was found, plain JSON values; every answer is scored from its text.

    Units of which a question has no answer are left out and counted. `units` holds what
    `compare` needs. Raises InputError E_RUN where no unit is complete.
    """
    rows = _units(suite, items, answers)
    if not rows:
        raise InputError("no question was answered, so there is nothing to report", name="E_RUN")
    units = [unit for unit, _ in rows]
    metrics = defined(suite.metrics(_categories(units)), units)
    found = estimate(units, metrics, num_resamples=num_resamples, seed=seed)
    num_units = len({(item.category, item.unit) for item in items})
    return {
        "suite": suite.name,
        **settings,
        "num_units": len(units),
        "num_incomplete_units": num_units - len(units),
        "num_bad_rows": len(bad_rows),
        "bad_rows": [str(row) for row in bad_rows[:_SHOWN_BAD_ROWS]],
        "bootstrap": {"confidence": 0.95, "num_resamples": num_resamples, "seed": seed},
        "scores": {m.name: {**asdict(found[m.name]), "scale": m.scale} for m in metrics},
        "answers": summary([answers[i.id] for i in items if i.id in answers], suite),
        "units": [
            [unit.category, unit.id, sha256, unit.correct, dict(unit.counts)]
            for unit, sha256 in rows
        ],
    }


def _units(
    suite: Suite, items: Sequence[Item], answers: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Unit, str]]:
    """The complete units in order, each with the hash of its questions."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.category, item.unit), []).append(item)
    found = []
    for (category, id_), members in groups.items():
        if not all(item.id in answers for item in members):
            continue
        scores: list[Score] = [
            suite.score(item, suite.final(answers[item.id]["text"])) for item in members
        ]
        correct, counts = suite.unit(scores)
        unit = Unit(id=id_, category=category, correct=correct, counts=counts)
        found.append((unit, " ".join(item.sha256[:16] for item in members)))
    return found


def _categories(units: Sequence[Unit]) -> list[str]:
    return list(dict.fromkeys(unit.category for unit in units))


def summary(answers: Sequence[Mapping[str, Any]], suite: Suite) -> dict[str, Any]:
    """What the answers were like, whatever the suite; means over answers, shares in 0..1."""
    num = len(answers)

    def mean(name: str) -> float:
        return round(sum(float(a.get(name) or 0) for a in answers) / num, 4)

    def share(test: Any) -> float:
        return round(sum(bool(test(a)) for a in answers) / num, 4)

    return {
        "num": num,
        "format_frac": share(lambda a: well_formed(a["text"])),
        "no_conclusion_frac": share(lambda a: not suite.final(a["text"])),
        "truncated_frac": share(lambda a: a.get("finish_reason") == "length"),
        "num_numerical_errors": sum(a.get("finish_reason") == "numerical_error" for a in answers),
        "tokens_mean": mean("tokens"),
        "reflections_mean": mean("reflections"),
        "reinjected_tokens_mean": mean("reinjected_tokens"),
        "skipped_injections": sum(int(a.get("skipped_injections") or 0) for a in answers),
        "seconds_mean": mean("seconds"),
    }


def report_table(report: Mapping[str, Any]) -> str:
    """What was asked of what in a line, then a table: a row a metric, then the answers."""
    lines = [
        f"{_caption(report)} Shares are in %.",
        "",
        "| metric | value | 95 % interval | units |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, score in report["scores"].items():
        value = _shown(score["value"], score["scale"])
        lines.append(f"| {_cell(name)} | {value} | {_interval(score)} | {score['num']} |")
    said = report["answers"]
    for label, text in (
        ("answers in the response format", _shown(said["format_frac"], 100)),
        ("answers without a conclusion", _shown(said["no_conclusion_frac"], 100)),
        ("answers cut off at the token limit", _shown(said["truncated_frac"], 100)),
        ("tokens an answer", f"{said['tokens_mean']:.1f}"),
        ("reflections an answer", f"{said['reflections_mean']:.2f}"),
        ("visual tokens put in again, an answer", f"{said['reinjected_tokens_mean']:.1f}"),
        ("seconds a question", f"{said['seconds_mean']:.2f}"),
    ):
        lines.append(f"| {label} | {text} | | {said['num']} |")
    if report["num_bad_rows"]:
        lines.append(f"| bad rows, skipped | {report['num_bad_rows']} | | |")
    return "\n".join(lines) + "\n"


def _caption(report: Mapping[str, Any]) -> str:
    """Such as: lookworld (test-inverted) of tiny, native int8, policy copy by embed, 9 units."""
    asked, model = report["asked"], report["run"].get("model", "a model")
    engine, policy = asked["engine"], asked["policy"]
    split = f" ({asked['split']})" if asked.get("split") else ""
    return _cell(
        f"{report['suite']}{split} of {model}, {engine['name']} {engine['dtype']}, "
        f"policy {policy['name']} by {policy['inject']}, {report['num_units']} units."
    )


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """B against A over the same questions: paired differences, and McNemar's exact test.

    Raises InputError E_COMPARE where the suites or the questions differ.
    """
    if a["suite"] != b["suite"]:
        raise InputError(
            f"the runs are of different suites: {a['suite']} and {b['suite']}\n"
            "compare two runs of the same questions",
            name="E_COMPARE",
        )
    units_a, units_b = _paired_units(a["units"], b["units"])
    try:
        metrics = defined(suite_named(a["suite"]).metrics(_categories(units_a)), units_a)
        found = paired(units_a, units_b, metrics, num_resamples=num_resamples, seed=seed)
    except KeyError as error:  # a count that this version adds up and the report lacks
        raise _damaged(error) from None
    pairs = list(zip(units_a, units_b, strict=True))
    only_a = sum(x.correct and not y.correct for x, y in pairs)
    only_b = sum(y.correct and not x.correct for x, y in pairs)
    return {
        "suite": a["suite"],
        "num_units": len(pairs),
        "differs": [
            {"name": name, "a": was, "b": now}
            for name, was, now in differences(a.get("asked"), b.get("asked"))
        ],
        "bootstrap": {"confidence": 0.95, "num_resamples": num_resamples, "seed": seed},
        "scores": {m.name: {**asdict(found[m.name]), "scale": m.scale} for m in metrics},
        "mcnemar": {"only_a": only_a, "only_b": only_b, "p": mcnemar_p(only_a, only_b)},
    }


def _paired_units(rows_a: Sequence[Any], rows_b: Sequence[Any]) -> tuple[list[Unit], list[Unit]]:
    """The units of both in A's order. Raises InputError E_COMPARE."""
    units_a, units_b = _units_by_key(rows_a), _units_by_key(rows_b)
    lacking = [key for key in units_a if key not in units_b]
    surplus = [key for key in units_b if key not in units_a]
    if lacking or surplus:
        raise InputError(
            f"the runs hold different questions: {len(lacking)} only in the first, "
            f"{len(surplus)} only in the second, such as {(lacking or surplus)[0][1]!r}\n"
            "compare two runs of the same questions",
            name="E_COMPARE",
        )
    for key, (_, sha256) in units_a.items():
        if sha256 != units_b[key][1]:
            raise InputError(
                f"question {key[1]!r} is not the same in both runs: the data differ\n"
                "compare two runs of the same questions",
                name="E_COMPARE",
            )
    return [unit for unit, _ in units_a.values()], [units_b[key][0] for key in units_a]


def _units_by_key(rows: Sequence[Any]) -> dict[tuple[str, str], tuple[Unit, str]]:
    found = {}
    try:
        for category, id_, sha256, correct, counts in rows:
            unit = Unit(
                id=str(id_),
                category=str(category),
                correct=bool(correct),
                counts={str(name): float(value) for name, value in counts.items()},
            )
            found[unit.category, unit.id] = unit, str(sha256)
    except (TypeError, ValueError, AttributeError) as error:
        raise _damaged(error) from None
    return found


def _damaged(error: Exception) -> InputError:
    return InputError(
        f"a report's units are damaged ({type(error).__name__}: {str(error)[:60]})\n"
        "run la-trt eval again on its --output: no question is asked twice",
        name="E_RUN",
    )


def compare_table(found: Mapping[str, Any], names: tuple[str, str] = ("A", "B")) -> str:
    """How the runs differ, then a table: a row a metric, McNemar's test last."""
    a, b = map(_cell, names)
    lines = [f"{found['suite']}, {b} against {a}. Shares are in %."]
    lines += [
        f"- {d['name']}: {json.dumps(d['a'])[:80]} -> {json.dumps(d['b'])[:80]}"
        for d in found["differs"]
    ]
    lines += [
        "",
        f"| metric | {a} | {b} | difference | 95 % interval | units |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, score in found["scores"].items():
        keys = ("a", "b", "difference")
        cells = " | ".join(_shown(score[key], score["scale"]) for key in keys)
        lines.append(f"| {_cell(name)} | {cells} | {_interval(score)} | {score['num']} |")
    test = found["mcnemar"]
    lines.append(
        f"| right in one alone; McNemar p | {test['only_a']} | {test['only_b']} "
        f"| p = {test['p']:.3g} | | {found['num_units']} |"
    )
    return "\n".join(lines) + "\n"


def _shown(value: float, scale: float) -> str:
    return f"{scale * value:.1f}"


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score["low"], score["high"]
    if low is None or high is None:
        return "-"
    return f"{_shown(low, score['scale'])} to {_shown(high, score['scale'])}"


def _cell(text: str) -> str:
    return text.replace("|", "/")
