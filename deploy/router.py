"""Ray Serve's router for replicas: the one that has seen the image, else the least busy."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deploy.routing import order


class ImageRouter(RequestRouter):
    """Ranks replicas by rendezvous hashing of the request's key, the third argument.

    Serve takes the first one that has room, so that a popular image spreads over the next
    replicas when its own is full. A request without image goes to any.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The candidates, one rank each for a request with a key, else all in one."""
        if pending_request is None:
            return [candidate_replicas]
        # Between two rounds over replicas that are all full, wait.
        pending_request.routing_context.should_backoff = True
        key = _key(pending_request.args)
        if not key:
            return [candidate_replicas]
        named = {str(r.replica_id.unique_id): r for r in candidate_replicas}
        return [[named[name]] for name in order(key, named)]


def _key(args: Any) -> str:
    return str(args[2]) if len(args) > 2 else ""
