"""Events of the engine as the objects of the OpenAI API, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from typing import Any

from la_trt.events import DoneEvent, Event, ReflectionEvent, ReinjectEvent, Result, TokenEvent
from la_trt.processor.tokenizer import Vocabulary
from la_trt.serve.desk import Job, queue_s
from la_trt.serve.errors import numerical
from la_trt.serve.plan import Plan
from la_trt.serve.splitter import AnswerSplitter, Piece


class Answer:
    """The answer to one HTTP request while it grows. `add` returns the chunks of a stream."""

    prefix = ""
    object_name = ""
    chunk_name = ""

    def __init__(self, model_name: str, plan: Plan, vocabulary: Vocabulary) -> None:
        self.plan = plan
        self.results: dict[int, Result] = {}
        self.queue_s = 0.0
        self.prompt_tokens = 0
        self._jobs: list[Job] = []
        self._vocabulary = vocabulary
        self._choices: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[int, list[TokenEvent]] = {}
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model_name,
        }

    def begin(self, index: int) -> list[dict[str, Any]]:
        """The chunks with which a choice starts."""
        return []

    def add(self, index: int, event: Event, job: Job) -> list[dict[str, Any]]:
        """Take an event of choice `index`. Raises ApiError 500 for numbers that are not finite."""
        if isinstance(event, TokenEvent):
            if self.plan.logprobs:
                self._logprobs.setdefault(index, []).append(event)
            return self._token(index, event)
        if isinstance(event, (ReinjectEvent, ReflectionEvent)):
            return [self._chunk(index, look=[event_facts(event)])]
        assert isinstance(event, DoneEvent), "a new kind of event"
        result = event.result
        if result.finish_reason == "numerical_error":
            raise numerical()
        self.results[index] = result
        if job not in self._jobs:
            self._jobs.append(job)
            self.prompt_tokens += result.usage.prompt_tokens
        self.queue_s = max(self.queue_s, queue_s(job, result))
        return self._end(index, result, job)

    def whole(self) -> dict[str, Any]:
        """The body of the answer that is not streamed."""
        return {
            **self._head,
            "object": self.object_name,
            "choices": [self._choices[i] for i in sorted(self._choices)],
            "usage": self.usage(),
            "lookagain": {
                **self.plan.facts(),
                "queue_ms": round(self.queue_s * 1e3, 3),
                "choices": [{"index": i, **self._choice_facts(i)} for i in sorted(self.results)],
            },
        }

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that was asked for the usage."""
        return {
            **self._head,
            "object": self.chunk_name,
            "choices": [],
            "usage": self.usage(),
        }

    @property
    def num_cached(self) -> int:
        """Prompt tokens that were there already: of one answer to a prompt, the mean of its `n`."""
        return sum(job.request.num_cached // self.plan.n for job in self._jobs)

    def usage(self) -> dict[str, Any]:
        """Token counts; prompts count once, whatever `n` is."""
        completion = sum(r.usage.completion_tokens for r in self.results.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }

    def _token(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _end(self, index: int, result: Result, job: Job) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _delta(self) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk(self, index: int, look: list[dict[str, Any]]) -> dict[str, Any]:
        """A chunk without text for the clients that know `lookagain`; others see nothing new."""
        return {
            **self._head,
            "object": self.chunk_name,
            "choices": [{"index": index, "finish_reason": None, "logprobs": None} | self._delta()],
            "lookagain": {"events": look},
        }

    def _last(self, index: int, result: Result, choice: dict[str, Any], job: Job) -> dict[str, Any]:
        return {
            **self._head,
            "object": self.chunk_name,
            "choices": [{"index": index, "finish_reason": result.finish_reason} | choice],
            "lookagain": {
                **self.plan.facts(),
                "queue_ms": round(queue_s(job, result) * 1e3, 3),
                "choices": [{"index": index, **self._choice_facts(index)}],
            },
        }

    def _choice_facts(self, index: int) -> dict[str, Any]:
        result = self.results[index]
        return {
            "num_reflections": result.num_reflections,
            "visual_tokens": result.usage.visual_tokens,
            "reinjected_tokens": result.usage.reinjected_tokens,
            "reinjections": [event_facts(r) for r in result.reinjections],
            "timings": {
                name: round(getattr(result.timing, name), 3) for name in result.timing.__slots__
            },
        }


class ChatAnswer(Answer):
    """`chat.completion`: the conclusion is `content`, the rest `reasoning_content`."""

    prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, model_name: str, plan: Plan, vocabulary: Vocabulary) -> None:
        super().__init__(model_name, plan, vocabulary)
        self._splitters: dict[int, AnswerSplitter] = {}
        self._texts: dict[int, Piece] = {}

    def begin(self, index: int) -> list[dict[str, Any]]:
        self._splitters[index] = AnswerSplitter()
        self._texts[index] = Piece()
        return [self._text_chunk(index, {"role": "assistant", "content": ""}, None)]

    def _token(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        delta = self._grow(index, self._splitters[index].push(event.text))
        logprobs = self._chat_logprobs([event]) if self.plan.logprobs else None
        return [self._text_chunk(index, delta, logprobs)] if delta or logprobs else []

    def _grow(self, index: int, piece: Piece) -> dict[str, Any]:
        text = self._texts[index]
        text.reasoning += piece.reasoning
        text.content += piece.content
        delta = {"reasoning_content": piece.reasoning, "content": piece.content}
        return {name: value for name, value in delta.items() if value}

    def _end(self, index: int, result: Result, job: Job) -> list[dict[str, Any]]:
        rest = self._grow(index, self._splitters[index].finish())
        text = self._texts[index]
        logprobs = self._logprobs.get(index, [])
        self._choices[index] = {
            "index": index,
            "message": {
                "role": "assistant",
                "content": text.content,
                "reasoning_content": text.reasoning or None,
                "refusal": None,
            },
            "logprobs": self._chat_logprobs(logprobs) if self.plan.logprobs else None,
            "finish_reason": result.finish_reason,
        }
        chunks = [self._text_chunk(index, rest, None)] if rest else []
        return [*chunks, self._last(index, result, {"delta": {}, "logprobs": None}, job)]

    def _delta(self) -> dict[str, Any]:
        return {"delta": {}}

    def _text_chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return {**self._head, "object": self.chunk_name, "choices": [choice]}

    def _chat_logprobs(self, events: list[TokenEvent]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._one(event.token_id, event.logprob),
                    "top_logprobs": [self._one(i, value) for i, value in event.top_logprobs],
                }
                for event in events
            ],
            "refusal": None,
        }

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelt = self._vocabulary.token_bytes(token_id)
        text = spelt.decode("utf-8", errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(spelt)}


class TextAnswer(Answer):
    """`text_completion`: the text as it is, tags included."""

    prefix = "cmpl"
    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, model_name: str, plan: Plan, vocabulary: Vocabulary) -> None:
        super().__init__(model_name, plan, vocabulary)
        self._offsets: dict[int, int] = {}

    def _token(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        if not event.text and not self.plan.logprobs:
            return []
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(event.text)
        logprobs = self._text_logprobs([event], offset) if self.plan.logprobs else None
        choice = {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}
        return [{**self._head, "object": self.chunk_name, "choices": [choice]}]

    def _end(self, index: int, result: Result, job: Job) -> list[dict[str, Any]]:
        logprobs = self._logprobs.get(index, [])
        self._choices[index] = {
            "index": index,
            "text": result.text,
            "logprobs": self._text_logprobs(logprobs, 0) if self.plan.logprobs else None,
            "finish_reason": result.finish_reason,
        }
        return [self._last(index, result, {"text": "", "logprobs": None}, job)]

    def _delta(self) -> dict[str, Any]:
        return {"text": ""}

    def _text_logprobs(self, events: list[TokenEvent], offset: int) -> dict[str, Any]:
        offsets = []
        for event in events:
            offsets.append(offset)
            offset += len(event.text)
        return {
            "tokens": [self._name(e.token_id) for e in events],
            "token_logprobs": [e.logprob for e in events],
            "top_logprobs": [{self._name(i): v for i, v in e.top_logprobs} for e in events],
            "text_offset": offsets,
        }

    def _name(self, token_id: int) -> str:
        """The token's text; its bytes or its number where it has none that tells it apart."""
        spelt = self._vocabulary.token_bytes(token_id)
        if not spelt:
            return f"token_id:{token_id}"
        try:
            return spelt.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def event_facts(event: ReinjectEvent | ReflectionEvent) -> dict[str, Any]:
    """A re-injection, or a reflection that opened or closed, as a plain object."""
    if isinstance(event, ReflectionEvent):
        return {
            "type": "reflection",
            "step": event.step,
            "reflection": event.index,
            "opened": event.opened,
        }
    return {
        "type": "reinject",
        "step": event.step,
        "kind": event.kind,
        "select": event.select,
        "num_tokens": event.num_tokens,
        "ms": round(event.ms, 3),
        "skipped": event.skipped or False,
    }
