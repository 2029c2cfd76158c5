"""Schemas of requests. Unknown fields and unsupported values are errors that name the field."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ftcore.api.option_groups import LARGEST, RepetitionPenalty, Temperature
from ftcore.serving.http_errors import ApiError, invalid
from ftcore.utils.json_files import DEEPEST, too_deep
from ftcore.utils.strict_json import unique_keys

R = TypeVar("R", bound="Fields")
MAX_SEED = 2**63 - 1


class Fields(BaseModel):
    """Base class: unknown fields and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse(body: bytes, content_type: str) -> Any:
    """Parses the JSON of a request.

    Raises:
        ApiError: the body is not JSON, or is nested too deeply.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the request must be JSON, with Content-Type: application/json")
    try:
        found = json.loads(body, object_pairs_hook=unique_keys)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ApiError(400, f"the request contains an unpaired surrogate: {half}") from None
    except RecursionError:
        raise _deep() from None
    except ValueError as error:
        raise ApiError(400, f"the request is not JSON: {error}") from None
    if too_deep(found):
        raise _deep()
    return found


def _deep() -> ApiError:
    return ApiError(400, f"the request is nested more than {DEEPEST} levels deep")


def validate(model: type[R], found: Any) -> R:
    """Validates the JSON of a request.

    Raises:
        ApiError: with all wrong fields.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise invalid(error) from None


def _text(value: Any) -> Any:
    """Joins text parts; raises an error for other parts."""
    if not isinstance(value, list):
        return value
    for number, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"part {number} is {kind!r:.40}: this server supports text only")
    return "".join(part["text"] for part in value)


Content = Annotated[str, BeforeValidator(_text)]


class FunctionCall(Fields):
    """The function of a call in an earlier turn."""

    name: str
    arguments: str = "{}"


class ToolCall(Fields):
    """A tool call in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Fields):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    """OpenAI's client sends these fields back with an answer."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class FunctionSchema(Fields):
    """Name and parameters of a tool."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Fields):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionSchema


class StreamOptions(Fields):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TextFormat(Fields):
    """The only supported format."""

    type: Literal["text"]


Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(Fields):
    """``POST /v1/chat/completions``."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Temperature, Field(le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    repetition_penalty: Annotated[RepetitionPenalty, Field(le=10)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    response_format: TextFormat | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # without effect
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ: write one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def tokens(self) -> int | None:
        """Limit of the answer, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ScoredMessage(Fields):
    """A turn of a conversation to score."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Content


class Conversation(Fields):
    """A conversation that ends with the answer to score."""

    messages: Annotated[list[ScoredMessage], Field(min_length=2)]
    tools: list[Tool] | None = None


class ScoreRequest(Fields):
    """``POST /v1/score``."""

    model: str
    conversations: Annotated[list[Conversation], Field(min_length=1, max_length=256)]
    user: str | None = None
