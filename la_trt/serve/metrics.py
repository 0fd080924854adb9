"""Prometheus metrics: vLLM's names under the prefix `lookagain:`, and those of looking again."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from la_trt.events import ReflectionEvent, ReinjectEvent, Result

_SHORT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_S = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_PREFIX = "lookagain:"


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._model = model_name
        self.running = self._gauge("num_requests_running", "Sequences in the running batch.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that have not started.")
        self.kv_usage = self._gauge(
            "kv_cache_usage_perc", "Share of the KV positions that running sequences use, 0 to 1."
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, cached ones included.")
        self.generation_tokens = self._counter(
            "generation_tokens", "Generated tokens of finished answers."
        )
        self.prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self.drafted = self._counter("spec_decode_num_draft_tokens", "Tokens guessed ahead.")
        self.accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Guessed tokens that came true."
        )
        self.mm_queries = self._counter("mm_cache_queries", "Images looked up.")
        self.mm_hits = self._counter("mm_cache_hits", "Images whose embeddings were kept.")
        self.success = self._labelled(
            "request_success", "Answers that ended by themselves.", "finished_reason"
        )
        self.responses = self._labelled("http_responses", "Answered requests.", "route", "status")
        self.aborted = self._counter("requests_aborted", "Requests whose client went away.")
        self.ttft = self._seconds("time_to_first_token_seconds", "Arrival to first token.")
        self.inter_token = self._seconds("inter_token_latency_seconds", "Between two tokens.")
        self.e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", _LONG_S)
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "To the first token, less the engine's part.", _LONG_S
        )
        self.prefill_time = self._seconds("request_prefill_time_seconds", "Engine time of prompts.")
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "Engine time of decoding.", _LONG_S
        )
        self.request_prompt = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self.request_generation = self._histogram(
            "request_generation_tokens", "Generated tokens of an answer.", _TOKENS
        )
        self.reinject_time = self._seconds(
            "reinject_time_seconds", "What putting visual tokens in again took."
        )
        self.reinject_tokens = self._counter("reinject_tokens", "Visual tokens put in again.")
        self.reinject_skipped = self._labelled(
            "reinject_skipped", "Injections that did not take place.", "reason"
        )
        self.reflections = self._labelled("reflections", "Reflections opened.", "policy")

    def watch_waiting(self, count: Callable[[], float]) -> None:
        """Let the gauge of waiting requests call `count`."""
        self.waiting.set_function(count)

    def response(self, route: str, status: int) -> None:
        """Note an answered request."""
        self.responses.labels(self._model, route, str(status)).inc()

    def reinjected(self, event: ReinjectEvent) -> None:
        """Note an injection, or why there was none."""
        if event.skipped:
            self.reinject_skipped.labels(self._model, event.skipped).inc()
            return
        self.reinject_time.observe(event.ms / 1e3)
        self.reinject_tokens.inc(event.num_tokens)

    def reflected(self, event: ReflectionEvent, policy: str) -> None:
        """Note a reflection that opened, under the policy's preset name or `custom`."""
        if event.opened:
            self.reflections.labels(self._model, policy).inc()

    def finished(self, result: Result, queue_s: float) -> None:
        """Note the end of one sequence."""
        self.success.labels(self._model, result.finish_reason).inc()
        self.generation_tokens.inc(result.usage.completion_tokens)
        self.request_generation.observe(result.usage.completion_tokens)
        self.prefill_time.observe(result.timing.prefill_ms / 1e3)
        self.decode_time.observe((result.timing.decode_ms + result.timing.reinject_ms) / 1e3)
        self.queue_time.observe(queue_s)

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(_PREFIX + name, text, ["model_name"], registry=self.registry)
        return gauge.labels(self._model)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(_PREFIX + name, text, ["model_name"], registry=self.registry)
        return counter.labels(self._model)

    def _labelled(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, ["model_name", *labels], registry=self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, _SHORT_S)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            _PREFIX + name, text, ["model_name"], buckets=buckets, registry=self.registry
        )
        return histogram.labels(self._model)
