"""What clients send: the requests of the OpenAI API, as far as they make sense here.

A field that nobody knows is refused, as there. One that only fits a service is taken and passed
over; one that would change the answer, and cannot, is taken with its neutral value alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_DEPTH = 64
"""Of objects and lists in each other."""


class Wire(BaseModel):
    """What comes over the wire: no conversions, no surprises."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(Wire):
    """The whole of a request."""

    @model_validator(mode="before")
    @classmethod
    def _check_parts(cls, given: Any) -> Any:
        """Refuse what JSON may hold and nothing behind this can: halves of characters, and
        nesting without end."""
        left = [(given, 1)]
        while left:
            part, depth = left.pop()
            if depth > MAX_DEPTH:
                raise ValueError("too deep")
            if isinstance(part, str) and not part.isascii():
                part.encode()
            elif isinstance(part, dict):
                left += [(inner, depth + 1) for item in part.items() for inner in item]
            elif isinstance(part, list):
                left += [(inner, depth + 1) for inner in part]
        return given


# Messages


class TextContent(Wire):
    """Words in a message, taken literally."""

    type: Literal["text"]
    text: str


class ImageAddress(Wire):
    """Where a picture is: a data URL, or an address where the server allows its host."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImageContent(Wire):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class SystemMessage(Wire):
    """What the model is told about its task; at the start."""

    role: Literal["system", "developer"]
    content: str | list[TextContent]
    name: str | None = None


class UserMessage(Wire):
    """What is asked, pictures anywhere in it."""

    role: Literal["user"]
    content: str | list[Content]
    name: str | None = None


class CalledFunction(Wire):
    """Which function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Wire):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Wire):
    """What the model answered; as it came from here, it can be sent back."""

    role: Literal["assistant"]
    content: str | list[TextContent] | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    name: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Wire):
    """What a function returned."""

    role: Literal["tool"]
    content: str | list[TextContent]
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


# Tools and formats


class Function(Wire):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Wire):
    """The name of a function."""

    name: str


class ToolChoice(Wire):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Wire):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class Schema(Wire):
    """A JSON schema with a name."""

    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Wire):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


# Requests

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Field(ge=0, le=0)]
"""Taken where it changes nothing."""
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(Wire):
    """What is told beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Asking(Body):
    """What both kinds of completion take."""

    model: str
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None

    # Not of the OpenAI API; the client sends them as `extra_body`
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None

    # Neutral values alone
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, int], Field(max_length=0)] | None = None

    user: str | None = None


class ChatRequest(Asking):
    """A conversation to be answered."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None

    # Passed over
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None


class CompletionRequest(Asking):
    """Running text to be continued."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=64),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    # Neutral values alone
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class EmbeddingRequest(Body):
    """Words whose meaning is wanted as numbers."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
