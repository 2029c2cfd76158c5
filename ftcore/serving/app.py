"""The FastAPI application: routes, and errors in OpenAI's format."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from ftcore.serving.bounds import BoundsOf
from ftcore.serving.completions import Completion, prepared
from ftcore.serving.constrained_schema import ScoreRequest, parse, validate
from ftcore.serving.http_errors import ApiError, dumps, failed
from ftcore.serving.limits import Guard
from ftcore.serving.preparing import ClientGone
from ftcore.serving.score_endpoint import score
from ftcore.serving.served_models import Served
from ftcore.serving.worker import Worker

# nginx's status for a client that disconnected; only the log shows it
CLIENT_CLOSED = 499


def create_app(served: Mapping[str, Served], *, key: str | None = None) -> FastAPI:
    """Creates the application; the server options are those of the first model.

    Args:
        served: name -> model.
        key: API key of requests; None for no key.
    """
    options = next(iter(served.values())).plan.serving
    sessions = {name: one.opener() for name, one in served.items() if one.generator}
    worker = Worker(sessions, options.serve_batch + options.serve_queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()
        for one in served.values():
            one.preparer.close()

    app = FastAPI(title="ft", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.worker, app.state.served = worker, served
    app.add_middleware(
        Guard,
        key=key,
        host=options.serve_host,
        max_body=options.serve_max_body,
        seconds=options.serve_read_timeout,
    )
    _errors(app)
    _routes(app)
    return app


def _routes(app: FastAPI) -> None:
    worker: Worker = app.state.worker
    served: Mapping[str, Served] = app.state.served

    bounds = BoundsOf({name: one.bounds for name, one in served.items()})
    first = next(iter(served.values()))

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(one) for one in served.values()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return _json(_model(find(served, name)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        begun = time.monotonic()
        work = first.preparer.chat(await request.body(), request.headers.get("content-type", ""), bounds)
        asked, prompt = await prepared(request, work, worker, first.plan.serving.serve_timeout)
        one = find(served, asked.model)
        if one.generator is None:
            raise ApiError(400, f"model {one.name} is a reward model; use /v1/score", param="model")
        completion = Completion(asked, prompt, one, worker, begun)
        try:
            await completion.start(request)
            if asked.stream:
                return StreamingResponse(
                    completion.stream(), media_type="text/event-stream", headers={"cache-control": "no-cache"}
                )
            body = await completion.whole(request)
        except BaseException:
            worker.drop(completion.job)
            raise
        return _json(body)

    @app.post("/v1/score")
    async def scores(request: Request) -> Response:
        found = parse(await request.body(), request.headers.get("content-type", ""))
        conversations = found.get("conversations") if isinstance(found, dict) else None
        for number, one in enumerate(conversations if isinstance(conversations, list) else ()):
            bounds(found).check(one, f"conversations.{number}.")
        asked = validate(ScoreRequest, found)
        return _json(await score(request, asked, find(served, asked.model), worker))


def find(served: Mapping[str, Served], name: str) -> Served:
    """The model of this name.

    Raises:
        ApiError: 404, with the available names.
    """
    if name in served:
        return served[name]
    reason = f"model {name!r:.80} does not exist; available: {', '.join(served)}"
    raise ApiError(404, reason, param="model", code="model_not_found")


def _model(one: Served) -> dict[str, Any]:
    return {"id": one.name, "object": "model", "created": one.created, "owned_by": "ft"}


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api(request: Request, error: ApiError) -> Response:
        return _json(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _json(ApiError(error.status_code, str(error.detail).lower()).body(), error.status_code, error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> Response:
        return _json(failed().body(), 500)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(value), status, dict(headers or {}), media_type="application/json")
