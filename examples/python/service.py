"""A small asyncio service on the loopback interface: answers stream while others are asked.

    python examples/python/service.py BUNDLE [PORT]

One connection is one question, a line of JSON: {"question": "...", "image": "<base64>"}. The
reply is one line of JSON an event: {"text": "..."} as the answer grows, then {"result": {...}},
or {"error": "E_NAME"}. Who hangs up cancels the answer. For HTTP there is `la-trt serve`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from contextlib import aclosing
from typing import Any

from la_trt import LookAgain, LookAgainError
from la_trt.errors import InputError
from la_trt.events import DoneEvent, ReinjectEvent, TokenEvent

MAX_LINE = 30 << 20
TIMEOUT_S = 30


def read_request(line: bytes) -> tuple[str, list[bytes]]:
    """The question and its picture, if it has one. Raises InputError."""
    try:
        request = json.loads(line)
        question, image = request["question"], request.get("image")
        images = [] if image is None else [base64.b64decode(image, validate=True)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError("expected question, and maybe image", name="E_REQUEST") from None
    if not isinstance(question, str):
        raise InputError("question: expected text", name="E_REQUEST")
    return question, images


class Service:
    """One model for all connections; their engine steps take turns."""

    def __init__(self, model: LookAgain) -> None:
        self.model = model

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), TIMEOUT_S)
            question, images = read_request(line)
            async with aclosing(self.model.astream(images, question)) as events:
                async for event in events:
                    if isinstance(event, TokenEvent) and event.text:
                        await send(writer, {"text": event.text})
                    elif isinstance(event, ReinjectEvent):
                        await send(writer, {"looks_again_at": event.num_tokens})
                    elif isinstance(event, DoneEvent):
                        await send(writer, {"result": event.result.to_json()})
        except LookAgainError as error:
            await send(writer, {"error": error.name})
        except (ValueError, TimeoutError):
            await send(writer, {"error": "E_REQUEST"})
        except ConnectionError:
            pass
        finally:
            writer.close()


async def send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """One line; raises ConnectionError once the other side has gone."""
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


async def main(bundle: str, port: int) -> None:
    service = Service(LookAgain(bundle))
    server = await asyncio.start_server(service.answer, "127.0.0.1", port, limit=MAX_LINE)
    async with server:
        print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: service.py BUNDLE [PORT]")
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0))
