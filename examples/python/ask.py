"""Ask about a picture: python examples/python/ask.py BUNDLE IMAGE QUESTION [POLICY]"""

from __future__ import annotations

import sys
from pathlib import Path

from la_trt import LookAgain, LookAgainError
from la_trt.events import ReinjectEvent, TokenEvent


def main(bundle: str, image: str, question: str, policy: str = "copy") -> None:
    model = LookAgain(bundle)
    for event in model.stream([Path(image)], question, policy=policy):
        if isinstance(event, TokenEvent):
            print(event.text, end="", flush=True)
        elif isinstance(event, ReinjectEvent):
            print(f"[{event.num_tokens} visual tokens again]", file=sys.stderr)
    print()


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: ask.py BUNDLE IMAGE QUESTION [POLICY]")
    try:
        main(*sys.argv[1:])
    except LookAgainError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
