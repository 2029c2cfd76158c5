"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ftcore.errors import UsageError

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        kind: OpenAI's ``type``.
        param: the field of the request.
        code: OpenAI's ``code``.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """It is sent between processes."""
        return _rebuilt, (self.status, self.message, self.kind, self.param, self.code, self.headers)

    def body(self) -> dict[str, Any]:
        """``{"error": {...}}``."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _rebuilt(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: dict[str, str]
) -> ApiError:
    return ApiError(status, message, kind=kind, param=param, code=code, headers=headers)


def dumps(value: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 has not, is written as JSON's own escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def invalid(error: ValidationError) -> ApiError:
    """What pydantic found, each with its field."""
    found = [(".".join(map(str, item["loc"])), item) for item in error.errors(include_url=False)]
    parts = []
    for place, item in found:
        if item["type"] == "extra_forbidden":
            parts.append(f"{place}: this server does not support this field")
        else:
            message = item["msg"].removeprefix("Value error, ")
            parts.append(f"{place}: {message[:1].lower()}{message[1:]}")
    return ApiError(400, "; ".join(dict.fromkeys(parts)), param=found[0][0] or None)


def refused(error: UsageError) -> ApiError:
    """A prompt or setting that the engine refused."""
    return ApiError(400, "; ".join(map(str, error.problems)))


def failed() -> ApiError:
    """The engine broke; what happened is in the server's log, not in the answer."""
    return ApiError(500, "the model failed during generation; the server's log has the cause", kind=SERVER)
