"""The Serve application: `serve run deploy.app:build engine=DIR`, or a file such as fleet.yaml."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deploy.relay import Relay
from deploy.replica import Replica, bundle_version
from deploy.router import ImageRouter
from deploy.settings import FleetSettings

APP = "la-trt"
_RELAY_REQUESTS = 2048
_RELAY_CPUS = 0.1


def build(args: dict[str, Any]) -> Application:
    """The relay over the replicas. `args`: fields of FleetSettings. Raises UsageError."""
    settings = FleetSettings.of(args)
    settings.serve_settings()
    settings.api_keys()
    replicas = serve.deployment(
        Replica,
        name="Replica",
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            initial_replicas=settings.min_replicas,
            target_ongoing_requests=settings.target_requests,
            upscale_delay_s=settings.scale_delay_s,
            downscale_delay_s=10 * settings.scale_delay_s,
        ),
        max_ongoing_requests=2 * settings.max_batch,
        max_queued_requests=settings.max_queued,
        request_router_config=RequestRouterConfig(request_router_class=ImageRouter),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=5,
        health_check_timeout_s=30,
    ).bind(settings, bundle_version(settings.engine))
    return serve.deployment(
        Relay,
        name="Relay",
        num_replicas=settings.num_relays,
        max_ongoing_requests=_RELAY_REQUESTS,
        ray_actor_options={"num_cpus": _RELAY_CPUS},
        graceful_shutdown_timeout_s=settings.drain_s,
    ).bind(replicas, settings)
