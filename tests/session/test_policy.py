"""Policies as data: presets, overrides, YAML files and what is refused in them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from la_trt.errors import UsageError
from la_trt.reattention.policy import (
    PRESETS,
    Policy,
    Select,
    Trigger,
    load_policy,
    policy_from_dict,
    preset,
    resolve_policy,
)
from la_trt.reattention.select import mean_mass, num_selected, route, select_tokens


def test_presets_say_what_the_paper_says() -> None:
    policies = {name: preset(name) for name in PRESETS}
    assert {n for n, p in policies.items() if p.injects} == {"copy", "route", "vision", "random"}
    assert {n for n, p in policies.items() if p.needs_mass} == {"route"}
    assert {n for n, p in policies.items() if p.close_at_once} == {"vision"}
    assert {n for n, p in policies.items() if not p.allow_reflection} == {"never"}
    for policy in policies.values():
        assert policy.inject == "embed"
        assert policy.max_reflections == 8
        assert policy.select.percent == 50


def test_a_file_gives_the_policy_it_spells(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "trigger: {kind: entropy, entropy_nats: 1.5, min_gap: 4}\n"
        "select: {kind: route, percent: 12.5}\n"
        "inject: kv\nmax_reflections: 2\n"
    )
    assert load_policy(path) == Policy(
        name="mine",
        trigger=Trigger(kind="entropy", entropy_nats=1.5, min_gap=4),
        select=Select(kind="route", percent=12.5),
        inject="kv",
        max_reflections=2,
    )
    assert resolve_policy(str(path)) == resolve_policy(path) == load_policy(path)


def test_the_example_is_a_policy_and_the_documented_keys_are_all() -> None:
    root = Path(__file__).parents[2]
    policy = load_policy(root / "examples" / "policy.yaml")
    assert (policy.trigger.kind, policy.select.kind, policy.needs_mass) == (
        "entropy",
        "route",
        True,
    )
    text = (root / "docs" / "architecture.md").read_text()
    documented = re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)
    parts = preset("copy").to_dict()
    keys = [k for k in parts if not isinstance(parts[k], dict)]
    keys += [f"{part}.{key}" for part in ("trigger", "select") for key in parts[part]]
    assert sorted(documented) == sorted(keys)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="got NoneType"):
        resolve_policy(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_a_policy_survives_being_saved(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.yml"
    path.write_text(yaml.safe_dump(preset(name).to_dict()))
    assert resolve_policy(path) == preset(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a mapping"),
        ("copy", "expected a mapping"),
        ("- a", "expected a mapping"),
        ("selection: {kind: all}", "unknown key 'selection'"),
        ("select: {kind: all, precent: 5}", "unknown key 'precent'"),
        ("select: route", "select: expected a mapping"),
        ("select: {kind: best}", "select.kind: expected one of all, route, random"),
        ("select: {percent: 101}", "select.percent: expected a number from 0 to 100"),
        ("select: {percent: .nan}", "select.percent"),
        ("select: {percent: true}", "select.percent"),
        ("select: {percent: '50'}", "select.percent"),
        ("trigger: {kind: [every]}", "trigger.kind"),
        ("trigger: {every_tokens: 0}", "trigger.every_tokens"),
        ("trigger: {every_tokens: 1.5}", "trigger.every_tokens"),
        ("trigger: {entropy_nats: -1}", "trigger.entropy_nats"),
        ("trigger: {min_gap: -1}", "trigger.min_gap"),
        ("inject: both", "inject: expected one of embed, kv"),
        ("max_reflections: -1", "max_reflections"),
        ("max_reflections: no", "max_reflections"),
        ("close_at_once: 1", "close_at_once: expected true or false"),
        ("name: ''", "policy.name"),
        ("name: 7", "policy.name"),
        ("1: 2", "unknown key 1"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("inject: \x00", "not YAML"),
        ("#" * 70000, "larger than"),
        ("[" * 1200, "not YAML"),
    ],
)
def test_a_bad_file_is_refused_naming_file_and_field(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_policy(path)
    assert caught.value.name == "E_POLICY"
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert len(caught.value.render().splitlines()) <= 3


def test_a_value_that_expands_without_end_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="unknown key 'a0'"):
        load_policy(path)
    anchors = "[{}]".format(", ".join(line.partition(": ")[2] for line in lines))
    for field in ("inject", "max_reflections", "close_at_once", "name", "trigger"):
        path.write_text(f"{field}: {anchors}")
        with pytest.raises(UsageError, match=r"got list|expected a mapping"):
            load_policy(path)
    path.write_text(f"max_reflections: -{'9' * 4000}")
    with pytest.raises(UsageError, match="got int"):
        load_policy(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UsageError, match="policy file"):
            load_policy(path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="not YAML"):
        load_policy(binary)
    with pytest.raises(UsageError, match="'cpoy' is unknown"):
        resolve_policy("cpoy")


def test_settings_override_and_warn_where_they_have_no_effect() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        route_kv = resolve_policy("route", inject="kv", route_percent=25, max_reflections=1)
    assert (route_kv.inject, route_kv.select.percent, route_kv.max_reflections) == ("kv", 25, 1)
    for name, setting in [
        ("copy", {"route_percent": 25}),
        ("text", {"inject": "kv"}),
        ("never", {"max_reflections": 2}),
        ("text", {"route_percent": 10}),
    ]:
        with pytest.warns(UserWarning, match="has no effect"):
            resolve_policy(name, **setting)
    with pytest.raises(UsageError, match="percent"):
        resolve_policy("route", route_percent=float("inf"))


def test_policy_from_dict_takes_the_default_name() -> None:
    assert policy_from_dict({}, default_name="x") == Policy(name="x")


def test_num_selected_is_the_exact_ceiling() -> None:
    for num_visual in (0, 1, 19, 64, 100, 111, 1000):
        for percent in range(101):
            exact = -(-percent * num_visual // 100)
            assert num_selected(Select(kind="route", percent=percent), num_visual) == exact
    assert num_selected(Select(kind="route", percent=0.1), 1000) == 1
    assert num_selected(Select(kind="route", percent=12.5), 64) == 8
    assert num_selected(Select(kind="route", percent=12.6), 64) == 9
    assert num_selected(Select(kind="all", percent=1), 64) == 64


@pytest.mark.parametrize("size", [1, 19, 111])
def test_route_equals_a_sort_by_mass_then_index(size: int) -> None:
    rng = np.random.default_rng(size)
    mass = rng.integers(0, 5, size) / 4
    for count in (0, 1, size // 2, size):
        by_hand = sorted(sorted(range(size), key=lambda i: (-mass[i], i))[:count])
        assert route(mass, count).tolist() == by_hand


def test_mean_mass_is_taken_in_double_precision_over_all_steps() -> None:
    steps = [np.array([0.1, 0.2], np.float32), np.array([0.3, 0.0], np.float32)]
    assert mean_mass(steps, None) == pytest.approx(np.array([0.2, 0.1]))
    assert mean_mass([], np.array([0.5, 0.25], np.float32)).tolist() == [0.5, 0.25]
    with pytest.raises(AssertionError, match="no forward pass"):
        mean_mass([], None)


def test_random_control_spreads_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    hits = np.zeros(20)
    for _ in range(400):
        chosen = select_tokens(
            Select(kind="random", percent=25), 20, step_masses=[], first_pass=None, rng=rng
        )
        assert len(set(chosen.tolist())) == 5
        hits[chosen] += 1
    assert hits.min() > 60 and hits.max() < 140
