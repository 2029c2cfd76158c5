"""``/v1/score``: scores conversations with a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from ftcore.api.samples import Chat, Message
from ftcore.errors import UsageError
from ftcore.serving.completions import busy, told
from ftcore.serving.constrained_schema import Conversation, ScoreRequest
from ftcore.serving.http_errors import ApiError
from ftcore.serving.preparing import attended
from ftcore.serving.request_messages import tools
from ftcore.serving.served_models import Served
from ftcore.serving.worker import Busy, EngineFailed, Worker


async def score(request: Request, asked: ScoreRequest, served: Served, worker: Worker) -> dict[str, Any]:
    """The response body, with scores in the order of the conversations.

    Raises:
        ApiError: not a reward model, a bad conversation, a full queue, or a timeout.
        ClientGone: the client disconnected.
    """
    if (judge := served.judge) is None:
        reason = f"model {served.name} is not a reward model; use /v1/chat/completions"
        raise ApiError(400, reason, param="model")
    chats = [_chat(one) for one in asked.conversations]
    places = [f"conversations.{number}" for number in range(len(chats))]

    async def work() -> tuple[list[Sequence[int]], list[float]]:
        rows = await served.preparer.run(lambda: judge.read(chats, places))
        return rows, await worker.call(lambda: judge.score(rows))

    limit = served.plan.serving.serve_timeout
    try:
        with worker.place():
            rows, scores = await attended(request, work(), limit)
    except Busy:
        raise busy() from None
    except TimeoutError:
        reason = f"the scores were not ready within {limit:g} seconds (serve_timeout)"
        raise ApiError(504, reason, kind="server_error", code="timeout") from None
    except (UsageError, EngineFailed) as error:
        raise told(error) from None
    data = [
        {"object": "score", "index": index, "score": value, "tokens": len(row)}
        for index, (row, value) in enumerate(zip(rows, scores, strict=True))
    ]
    read = sum(map(len, rows))
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": served.name, "data": data, "usage": usage}


def _chat(found: Conversation) -> Chat:
    turns = tuple(Message(turn.role, turn.content) for turn in found.messages)
    return Chat(turns, tools(found.tools))
