"""What a server says of itself: its models, whether it is well, and what it has counted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.responses import Response

from bc2.serve.exchange import Exchange
from bc2.serve.json_response import json_response
from bc2.serve.metrics import CONTENT_TYPE
from bc2.serve.served_models import ServedRewardModel, SpeakingModel
from bc2.serve.service import Service


async def models(service: Service, exchange: Exchange) -> Response:
    """All models."""
    return json_response({"object": "list", "data": [_row(one) for one in service.models]})


async def model(service: Service, exchange: Exchange) -> Response:
    """One model. Raises: ApiError if it is not served."""
    return json_response(_row(service.model(exchange.request.path_params["name"])))


async def health(service: Service, exchange: Exchange) -> Response:
    """Whether requests are taken and answered: 200, or 503."""
    state = "stopping" if service.draining else "ok" if service.healthy else "failing"
    return json_response({"status": state}, 200 if state == "ok" else 503)


async def metrics(service: Service, exchange: Exchange) -> Response:
    """Prometheus's text."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _row(served: SpeakingModel | ServedRewardModel) -> dict[str, Any]:
    """A model as OpenAI lists it, and what a client may want to know of it."""
    artifact = served.artifact
    return {
        "id": served.name,
        "object": "model",
        "created": int(datetime.fromisoformat(artifact.created).timestamp()),
        "owned_by": "bc2",
        "ref": artifact.ref,
        "role": artifact.role,
        "max_model_len": served.window,
        **_abilities(served),
    }


def _abilities(served: SpeakingModel | ServedRewardModel) -> dict[str, Any]:
    """Whether it talks and how it is sampled, or that it scores, and on which scale."""
    if isinstance(served, SpeakingModel):
        return {"chat": served.chat is not None, "sampling": dict(served.chat_own)}
    scale = None if served.scale is None else served.scale._asdict()
    return {"chat": False, "sampling": {}, "scores": {"scale": scale}}
