"""What both sessions are asked: every policy, both ways to inject, every kind of option."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def requests(bundle: str, pictures: list[Json], open_id: int, close_id: int) -> list[Json]:
    """Requests about one or two pictures; reflections are forced, so that any model reflects."""
    one = pictures[:1]
    twice = [5, open_id, 9, close_id, 12, open_id, 7]
    base: Json = {"max_tokens": 14, "masses": True, "ignore_eos": True, "forced": twice}
    out: list[Json] = []

    def ask(images: list[Json], question: str = "How many?", **options: Any) -> None:
        request = {"op": "trace", "bundle": bundle, "images": images, "question": question}
        if "system" in options:
            request["system"] = options.pop("system")
        out.append({**request, "options": {**base, **options}})

    for policy in ("copy", "route", "random"):
        for inject in ("embed", "kv"):
            ask(one, policy=policy, inject=inject, percent=30.0, seed=11)
            ask(pictures, policy=policy, inject=inject, percent=15.0, seed=3)
    for policy in ("never", "text", "vision"):
        ask(one, policy=policy)
        ask(one, policy=policy, forced=[open_id], seed=5, temperature=1.5)
    ask(one, policy="vision", inject="kv")
    ask(one, policy="route", forced=[open_id])  # no mass yet but the prompt's own
    ask(one, policy="copy", max_reflections=1)
    ask(one, policy="route", inject="kv", max_reflections=0)
    ask(one, policy="route", trigger="every", every_tokens=3, forced=[])
    ask(one, policy="copy", trigger="entropy", entropy_nats=0.5, min_gap=4, forced=[])
    ask([], "Describe the image.", policy="copy")  # nothing to inject
    ask(one, "I'll say <REFLECTION> and <|im_end|>  \n\n ok", policy="copy", system="Be brief. é")
    ask(one, policy="copy", temperature=0.9, top_p=0.8, seed=2, forced=[])
    ask(one, policy="copy", temperature=1.2, top_k=20, seed=2, sample=2, forced=[])
    ask(one, policy="copy", temperature=0.7, top_k=50, top_p=0.9, repetition_penalty=1.3, forced=[])
    ask(one, policy="never", repetition_penalty=1.8, forced=[])
    ask(one, policy="text", ignore_eos=False, stop_token_ids=[9])
    ask(one, policy="text", stop=["\u00ff", "zz"], max_tokens=30, temperature=3.0, forced=[])
    return out
