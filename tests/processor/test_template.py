"""Chat templates: the usual ones render as `transformers` renders them, hostile ones stop fast."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from la_trt.errors import CheckpointError, InputError
from la_trt.processor.template import DEFAULT_TEMPLATE, ChatTemplate

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "a "},
            {"type": "image"},
            {"type": "text", "text": "b"},
        ],
    },
    {"role": "assistant", "content": "<think> hm </think> yes\n"},
    {"role": "user", "content": "  and now?\n"},
]

# The idioms of published templates.
USUAL = {
    "built-in": DEFAULT_TEMPLATE,
    "namespace and add_vision_id": (
        "{% set count = namespace(value=0) %}{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nhi<|im_end|>\n"
        "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
        "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
        "{% set count.value = count.value + 1 %}"
        "{% if add_vision_id %}Picture {{ count.value }}: {% endif %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}"
        "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "macro, slices, methods, filters": (
        "{%- macro show(content, trim=false) -%}{%- if content is string -%}"
        "{{- content.strip() if trim else content -}}{%- else -%}{%- for part in content -%}"
        "{{- part.text if part.type == 'text' else '<|image_pad|>' -}}{%- endfor -%}{%- endif -%}"
        "{%- endmacro -%}"
        "{%- set loop_messages = messages[1:] if messages[0].role == 'system' else messages -%}"
        "{%- for message in loop_messages[::-1] -%}"
        "{%- set text = show(message.content, true) -%}"
        "{%- if '</think>' in text -%}{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}"
        "{%- endif -%}"
        "{{- loop.index0 ~ ':' ~ message.role|upper ~ '\\n' ~ text|trim -}}"
        "{%- if loop.last -%}{%- break -%}{%- endif -%}{%- endfor -%}"
        "{{- messages|length }} {{ ['x', 'y']|join('-') }} {{ {'k': [1, none, true]}|tojson -}}"
        "{{- tools|default('no tools') }}{{ 'a' + 'b' * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ -1 -}}"
        "{{- (messages|map(attribute='role')|list)[0] -}}"
        "{{- messages|selectattr('role', 'equalto', 'user')|list|length -}}"
        "{%- for key, value in {'a': 1}.items() %}{{ key }}{{ value }}{% endfor -%}"
        "{%- for i in range(3) if i != 1 %}{{ i }}{% else %}none{% endfor -%}"
        "{%- set out %}kept{% endset %}{{ out }}{{ missing }}{{ messages[9] is defined -}}"
        "{{- 'Hello'.replace('l', 'L').startswith('He') and not false -}}"
    ),
}


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("generate", [True, False])
def test_usual_template_renders_as_transformers(name: str, generate: bool) -> None:
    template = ChatTemplate(USUAL[name])
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        expected, _ = render_jinja_template(
            conversations=[messages], chat_template=USUAL[name], add_generation_prompt=generate
        )
        assert template.render(messages, add_generation_prompt=generate) == expected[0]


DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = GROW %}{% endfor %}"
)


def doubling(start: str, grow: str, use: str = "") -> str:
    return DOUBLING.replace("START", start).replace("GROW", grow) + use


LONG = "{% set a = ' ' * 900000 %}"


def often(body: str) -> str:
    return LONG + "{% for i in range(90000) %}" + body + "{% endfor %}"


HOSTILE = {
    "nested loops": often("{% for j in range(99999) %}{% endfor %}"),
    "long range": "{% for i in range(10**12) %}x{% endfor %}",
    "range": "{% for i in range(1000000000000) %}x{% endfor %}",
    "range list": "{{ range(1000000000)|list|length }}",
    "times": "{{ 'a' * 10000000000 }}",
    "times list": "{{ ([0] * 1000000000)|length }}",
    "times reversed": "{{ 1000000000 * 'ab' }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "shift by multiplication": doubling("3", "ns.x * ns.x", "{{ ns.x }}"),
    "string doubling +": doubling("'ab'", "ns.x + ns.x"),
    "string doubling ~": doubling("'ab'", "ns.x ~ ns.x"),
    "list doubling": doubling("[1]", "ns.x + ns.x"),
    "list nesting": doubling("[1]", "[ns.x, ns.x]"),
    "tuple nesting": doubling("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "dict nesting": doubling("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    "deep nesting": doubling("[1]", "[ns.x]", "{{ ns.x }}"),
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace empty": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join(range(9999)|map('string')|list) }}",
    "join filter": "{{ range(99999)|join('b' * 100000) }}",
    "center": "{{ 'a'.center(10000000000) }}",
    "center filter": "{{ 'a'|center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "format filter": "{{ '%10000000000d'|format(1) }}",
    "format operator": "{{ '%10000000000d' % 1 }}",
    "format method": "{{ '{:10000000000d}'.format(1) }}",
    "format_map": "{{ '{a:10000000000d}'.format_map({'a': 1}) }}",
    "indent": "{{ 'a\n'|indent(10000000000) }}",
    "tojson indent": "{{ [1]|tojson(indent=10000000000) }}",
    "batch": "{{ [1]|batch(10000000000, 0)|list }}",
    "slice filter": "{{ [1]|slice(10000000000)|list }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro doubling": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "silent macro loop": (
        "{% macro f() %}{% for i in range(99999) %}{% endfor %}{% endmacro %}"
        "{% for i in range(99999) %}{% set x = f() %}{% endfor %}"
    ),
    "endless output": "{% for i in range(9999) %}" + "x" * 5000 + "{% endfor %}",
    "wide loop body": "{% for i in range(90000) %}" + "{{ i }}" * 5000 + "{% endfor %}",
    "compare long": (
        "{% set a = 'a' * 900000 %}{% set b = 'a' * 899999 ~ 'a' %}"
        "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}"
    ),
    "search long": often("{% if 'b' in a %}{% endif %}"),
    "slice long": often("{% set b = a[1:] %}"),
    "upper long": often("{% set b = a.upper() %}"),
    "trim long": often("{% set b = a|trim %}"),
    "test long": often("{% set b = 'b' is in a %}"),
    "select long": often("{% set b = [{'k': a}]|selectattr('k', 'in', a)|list %}"),
    "recursive loop": ("{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}"),
    "self containing": ("{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns.x }}"),
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "cycler": "{{ cycler(1, 2) }}",
    "mutation": "{{ messages.append(1) }}",
    "dict mutation": "{{ messages[0].update({'role': 'x'}) }}",
    "undefined call": "{{ nothing() }}",
    "undefined attribute": "{{ nothing.more }}",
    "division": "{{ 1 // 0 }}",
    "syntax": "{% if %}",
    "unclosed": "{% for x in messages %}",
    "nested parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nested lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "many digits": "{{ " + "9" * 20000 + " }}",
    "too long": "x" * 70000,
    "printing a function": "{{ range }}",
    "printing a namespace": "{{ namespace(a=1) }}",
    "printing a generator": "{{ messages|map(attribute='role') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_refused_fast(name: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate(HOSTILE[name]).render(MESSAGES, add_generation_prompt=True)
    assert caught.value.name == "E_TEMPLATE"
    assert len(caught.value.render().splitlines()) <= 3
    assert time.process_time() - start < 10


def test_bounds_grow_with_the_text() -> None:
    text = "word " * 1_000_000
    rendered = ChatTemplate().render([{"role": "user", "content": text}])
    assert text in rendered


def test_many_messages_fit() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}] * 3}] * 3000
    assert ChatTemplate().render(messages).count("<|im_start|>") == 3001


def test_exception_of_the_template_is_an_input_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(InputError, match=r"roles must\?alternate") as caught:
        template.render(MESSAGES)
    assert caught.value.name == "E_MESSAGES"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # As the processors of transformers 4.52 and newer choose.
        ({"chat_template.jinja": "J", "chat_template.json": '{"chat_template": "N"}'}, "N"),
        ({"chat_template.jinja": "J", "tokenizer_config.json": '{"chat_template": "T"}'}, "J"),
        ({"chat_template.jinja": "J", "chat_template.json": '{"chat_template": null}'}, "J"),
        (
            {
                "chat_template.json": '{"chat_template": "N"}',
                "tokenizer_config.json": '{"chat_template": "T"}',
            },
            "N",
        ),
        ({"tokenizer_config.json": '{"chat_template": "T"}'}, "T"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "default", "template": "D"}, {"name": "tools"}]}
                )
            },
            "D",
        ),
        ({"tokenizer_config.json": "{}"}, DEFAULT_TEMPLATE),
        ({}, DEFAULT_TEMPLATE),
    ],
)
def test_source_of_the_template(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert ChatTemplate.from_directory(tmp_path).source == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.json", b"[1]"),
        ("chat_template.json", b"{"),
        ("chat_template.json", b'{"chat_template": 3}'),
        ("tokenizer_config.json", b"\xff\xfe"),
        ("chat_template.jinja", b"\xff\xfe\x00"),
        ("chat_template.jinja", b"{% if"),
    ],
)
def test_damaged_template_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        ChatTemplate.from_directory(tmp_path)


NAMES = ("chat_template.json", "chat_template.jinja", "tokenizer_config.json")


@pytest.mark.parametrize("name", NAMES)
def test_template_file_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    model, outside = tmp_path / "m", tmp_path / "outside"
    model.mkdir()
    outside.write_text('{"chat_template": "T"}')
    (model / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=name) as caught:
        ChatTemplate.from_directory(model)
    assert caught.value.name == "E_LINK"
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        ChatTemplate.from_directory(model)
