"""The two routes that generate: from a body to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from la_trt.serve.answers import Answer, ChatAnswer, TextAnswer
from la_trt.serve.desk import Desk, Job, Prepared
from la_trt.serve.errors import ApiError, internal, invalid
from la_trt.serve.logs import log
from la_trt.serve.loop import stopped
from la_trt.serve.parse import parse_request
from la_trt.serve.plan import Plan, messages_of, plan_of, prompts_of
from la_trt.serve.schema import ChatRequest, CompletionRequest
from la_trt.serve.wire import GONE, ClientGone, Wire

_SMALL_BODY = 64 << 10


class Generation(Response, ABC):
    """One request on one of the two routes; it speaks ASGI itself to see clients leave."""

    route = ""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._arrived = time.monotonic()
        self._facts: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; every error becomes an answer of the contract."""
        wire = Wire(scope, receive, send, self._desk.settings.http)
        status = 0
        try:
            with self._desk.place():
                body = await wire.body()
                await wire.run(self._work(wire, body))
        except ApiError as error:
            status = error.status
            self._facts["code"] = error.code
            await self._refuse(wire, error)
        except (ClientGone, asyncio.CancelledError) as gone:
            cancelled = isinstance(gone, asyncio.CancelledError)
            if cancelled and self._desk.ended:  # the server does not wait any longer
                status = 503
                await self._refuse(wire, stopped())
            else:
                status = GONE
                self._desk.metrics.aborted.inc()
            if cancelled:
                raise
        except Exception:
            log("request_failed", level=logging.ERROR, exc_info=True, id=wire.request_id)
            status = 500
            await self._refuse(wire, internal())
        finally:
            self._log(wire, status or wire.status)

    async def _refuse(self, wire: Wire, error: ApiError) -> None:
        try:
            if wire.status:  # a stream is under way
                await wire.stream([error.body()])
                await wire.end_stream()
            else:
                await wire.refuse(error)
        except ClientGone:
            return

    async def _work(self, wire: Wire, body: bytes) -> None:
        parse = self._parse
        plan, prompts = (
            parse(body) if len(body) < _SMALL_BODY else await asyncio.to_thread(parse, body)
        )
        del body
        async with self._desk.turn():
            jobs: list[Job] = []
            prepared = [await self._prepare(prompt, plan) for prompt in prompts]
            try:
                for one in prepared:
                    jobs.append(self._desk.submit(plan, one, self._arrived))
                await self._answer(wire, plan, jobs)
            finally:
                for job in jobs:
                    self._desk.drop(job)

    async def _answer(self, wire: Wire, plan: Plan, jobs: Sequence[Job]) -> None:
        answer = self._new_answer(plan)
        num_prompts = sum(len(job.prepared.prompt.input_ids) for job in jobs)
        self._facts |= {"stream": plan.stream, "policy": plan.policy_label}
        self._facts |= {"prompt_tokens": num_prompts, "n": plan.n * len(jobs)}
        first = [c for i in range(plan.n * len(jobs)) for c in answer.begin(i)]
        started = False
        for number, job in enumerate(jobs):
            async for sample, event in self._desk.events(job):
                chunks = answer.add(number * plan.n + sample, event, job)
                if plan.stream and not started:
                    started = True
                    await wire.start_stream()
                    chunks = first + chunks
                if plan.stream and chunks:
                    await wire.stream(chunks)
        self._finished(answer, jobs)
        if not plan.stream:
            await wire.json(answer.whole())
            return
        if plan.include_usage:
            await wire.stream([answer.usage_chunk()])
        await wire.end_stream()

    def _finished(self, answer: Answer, jobs: Sequence[Job]) -> None:
        results = list(answer.results.values())
        ttft = min((job.ttft_s for job in jobs if job.ttft_s is not None), default=None)
        self._facts |= {
            "completion_tokens": sum(r.usage.completion_tokens for r in results),
            "cached_tokens": answer.num_cached,
            "visual_tokens": sum(job.prepared.prompt.num_visual for job in jobs),
            "reinjected_tokens": sum(r.usage.reinjected_tokens for r in results),
            "reflections": sum(r.num_reflections for r in results),
            "ttft_ms": None if ttft is None else round(ttft * 1e3, 1),
            "finish": sorted({r.finish_reason for r in results}),
        }

    def _log(self, wire: Wire, status: int) -> None:
        self._desk.metrics.response(self.route, status)
        total_ms = round((time.monotonic() - self._arrived) * 1e3, 1)
        log(
            "request",
            id=wire.request_id,
            route=self.route,
            status=status,
            total_ms=total_ms,
            **self._facts,
        )

    def _check_model(self, name: str) -> None:
        if name != self._desk.settings.model_name:
            raise ApiError(
                404, "model: not served here, see /v1/models", code="model_not_found", param="model"
            )

    @abstractmethod
    def _parse(self, body: bytes) -> tuple[Plan, Sequence[Any]]:
        """The plan, and what stands for each prompt."""

    @abstractmethod
    async def _prepare(self, prompt: Any, plan: Plan) -> Prepared:
        """One prompt, ready for the engine."""

    @abstractmethod
    def _new_answer(self, plan: Plan) -> Answer:
        """An empty answer."""


class ChatCompletion(Generation):
    """`POST /v1/chat/completions`."""

    route = "/v1/chat/completions"

    def _parse(self, body: bytes) -> tuple[Plan, Sequence[Any]]:
        request = parse_request(body, ChatRequest, self._desk.settings.http)
        self._check_model(request.model)
        plan = plan_of(request, self._desk.settings, self._desk.model.processor.limits)
        return plan, [messages_of(request)]

    async def _prepare(self, prompt: Any, plan: Plan) -> Prepared:
        messages, images = prompt
        return await self._desk.prepare_chat(messages, images, plan)

    def _new_answer(self, plan: Plan) -> Answer:
        vocabulary = self._desk.model.processor.vocabulary
        return ChatAnswer(self._desk.settings.model_name, plan, vocabulary)


class Completion(Generation):
    """`POST /v1/completions`."""

    route = "/v1/completions"

    def _parse(self, body: bytes) -> tuple[Plan, Sequence[Any]]:
        request = parse_request(body, CompletionRequest, self._desk.settings.http)
        self._check_model(request.model)
        plan = plan_of(request, self._desk.settings, self._desk.model.processor.limits)
        prompts = prompts_of(request)
        most = self._desk.settings.http.max_prompts
        if len(prompts) > most:
            raise invalid("prompt", f"prompt: at most {most} prompts, got {len(prompts)}")
        return plan, prompts

    async def _prepare(self, prompt: Any, plan: Plan) -> Prepared:
        return await self._desk.prepare_text(prompt, plan, "prompt")

    def _new_answer(self, plan: Plan) -> Answer:
        vocabulary = self._desk.model.processor.vocabulary
        return TextAnswer(self._desk.settings.model_name, plan, vocabulary)
