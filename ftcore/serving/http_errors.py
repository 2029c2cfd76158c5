"""Errors in the format of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ftcore.errors import UsageError

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: the problem and its fix.
        kind: OpenAI's ``type``.
        param: field of the request.
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
        """Pickles the error: it is sent between processes."""
        return _rebuilt, (self.status, self.message, self.kind, self.param, self.code, self.headers)

    def body(self) -> dict[str, Any]:
        """``{"error": {...}}``."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _rebuilt(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: dict[str, str]
) -> ApiError:
    return ApiError(status, message, kind=kind, param=param, code=code, headers=headers)


def dumps(value: Any) -> bytes:
    """JSON in UTF-8; an unpaired surrogate is written as a JSON escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def invalid(error: ValidationError) -> ApiError:
    """The errors of pydantic, each with its field."""
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
    """The error for a prompt or setting that the engine refused."""
    return ApiError(400, "; ".join(map(str, error.problems)))


def failed() -> ApiError:
    """The error for a failed engine; only the server's log has the details."""
    return ApiError(500, "the model failed during generation; the server's log has the cause", kind=SERVER)
