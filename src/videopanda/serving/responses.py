"""OpenAI's Responses API, as another form of a chat completion: the request, the reply, and the events of a stream.

Responses are not stored: every request contains the whole conversation, as input items with the content parts of
either API.
"""

import json
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from videopanda.inference.request import Finished, RequestStats, TextDelta
from videopanda.serving.errors import ServeError
from videopanda.serving.protocol import ChatRequest, FrameChoice, Nothing, ResponseFormat, Strict, place_of, reason_of

_SAME = ("model", "temperature", "top_p", "stream", "metadata", "user", "safety_identifier", "prompt_cache_key")


_ECHOED = ("instructions", "max_output_tokens", "metadata", "user", "safety_identifier", "prompt_cache_key")


def _not_stored(_: Any) -> None:
    raise ValueError("responses are not stored: send the whole conversation as input")


Stored = Annotated[Any, AfterValidator(_not_stored)]


def _nested(value: Any) -> Any:
    """A format of this API, whose schema has its fields beside the type, as one of chat completions."""
    if not isinstance(value, Mapping) or value.get("type") != "json_schema":
        return value
    return {"type": "json_schema", "json_schema": {name: field for name, field in value.items() if name != "type"}}


def _as_items(value: Any) -> Any:
    """Input as a list of items; plain text is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class TextOptions(Strict):
    """How text is returned."""

    format: Annotated[ResponseFormat | None, BeforeValidator(_nested)] = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamExtras(Strict):
    """What a stream contains in addition to its events: nothing."""

    include_obfuscation: Literal[False] | None = None


class Reasoning(Strict):
    """Replies are made without thoughts."""

    effort: Literal["none"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Strict):
    """POST /v1/responses."""

    input: Annotated[list[dict[str, Any]], BeforeValidator(_as_items), Field(min_length=1, max_length=1000)]
    instructions: str | None = None
    model: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    stream_options: StreamExtras | None = None
    video: FrameChoice = Field(default_factory=FrameChoice)
    text: TextOptions | None = None
    # Fields of OpenAI's API that have no effect here.
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    store: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    previous_response_id: Stored = None
    conversation: Stored = None
    background: Literal[False] | None = None
    service_tier: str | None = None
    _chat: ChatRequest = PrivateAttr()

    @model_validator(mode="after")
    def _as_chat(self) -> "ResponsesRequest":
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages += [_message(f"input[{i}]", item) for i, item in enumerate(self.input)]
        fields = {name: getattr(self, name) for name in _SAME}
        fields |= {"max_tokens": self.max_output_tokens, "video": self.video.model_dump(), "messages": messages}
        fields["response_format"] = self.text and self.text.format
        try:
            self._chat = ChatRequest.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place, reason = place_of(first["loc"]), reason_of(first)
            raise self.renamed(ServeError(f"{place}: {reason}" if place else reason, place or None)) from error
        return self

    @property
    def chat(self) -> ChatRequest:
        """The same request as a chat completion."""
        return self._chat

    def renamed(self, error: ServeError) -> ServeError:
        """An error about the chat completion, in the names of this request."""

        def item(found: re.Match[str]) -> str:
            number = int(found[1]) - bool(self.instructions)
            return "instructions" if number < 0 else f"input[{number}]"

        def own(text: str) -> str:
            return re.sub(r"^max_tokens\b", "max_output_tokens", re.sub(r"\bmessages\[(\d+)\]", item, text))

        param = "input" if error.param == "messages" else error.param and own(error.param)
        return type(error)(own(str(error)), param)

    @property
    def echo(self) -> dict[str, Any]:
        """Fields of the response that repeat the request, with the defaults of this server."""
        wanted = None if self.text is None else self.text.format
        schema = None if wanted is None else wanted.json_schema
        fields = {} if schema is None else schema.model_dump(by_alias=True, exclude_none=True)
        return {
            **self.model_dump(include=set(_ECHOED)),
            "metadata": self.metadata or {},
            "temperature": self.chat.sampling_temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "text": {"format": {"type": wanted.type if wanted else "text", **fields}},
            "store": False,
        }


def _message(place: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """An input item as a message; items of output are accepted unchanged. Raises ServeError."""
    kind = item.get("type") or "message"
    if kind == "item_reference":
        raise ServeError(f"{place}: responses are not stored: send the message itself (clients: store=false)", place)
    if kind != "message":
        raise ServeError(f"{place}: items of type {kind!r} are not supported: send messages", place)
    return {name: value for name, value in item.items() if name not in ("type", "id", "status")}


def response(head: Mapping[str, Any], status: str, text: str = "", end: Finished | None = None) -> dict[str, Any]:
    """The response object. `head`: its id, time and model, and what it repeats of the request."""
    cut = end is not None and end.finish_reason == "length"
    status = "incomplete" if cut else status
    item = {"id": f"msg_{head['id'][5:]}", "type": "message", "role": "assistant", "status": status}
    shown = [{**item, "content": [_text(text)]}] if end is not None else []
    return {
        **head,
        "object": "response",
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "output": shown,
        "usage": None if end is None else _usage(end.stats),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(stats: RequestStats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
    }


async def stream(
    head: Mapping[str, Any],
    first: TextDelta | Finished,
    events: AsyncGenerator[TextDelta | Finished, None],
    about: Callable[[RequestStats], dict[str, Any]],
    failed: Callable[[Exception], dict[str, Any]],
) -> AsyncIterator[str]:
    """Server-sent events. `about` gives fields that are not OpenAI's, `failed` the body of an error."""
    number = 0

    def event(kind: str, **fields: Any) -> str:
        nonlocal number
        content = {"type": kind, "sequence_number": number, **fields}
        number += 1
        return f"event: {kind}\ndata: {json.dumps(content)}\n\n"

    name = f"msg_{head['id'][5:]}"
    place = {"item_id": name, "output_index": 0, "content_index": 0}
    item = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    yield event("response.created", response=response(head, "in_progress"))
    yield event("response.in_progress", response=response(head, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=item)
    yield event("response.content_part.added", **place, part=_text(""))
    current: TextDelta | Finished = first
    try:
        while isinstance(current, TextDelta):
            yield event("response.output_text.delta", **place, delta=current.text, logprobs=[])
            current = await anext(events)
        yield event("response.output_text.done", **place, text=current.text, logprobs=[])
        yield event("response.content_part.done", **place, part=_text(current.text))
        done = response(head, "completed", current.text, current)
        yield event("response.output_item.done", output_index=0, item=done["output"][0])
        kind = "response.incomplete" if done["status"] == "incomplete" else "response.completed"
        yield event(kind, response={**done, "videopanda": about(current.stats)})
    except (ValueError, RuntimeError) as error:  # too late for a status code
        problem = failed(error)["error"]
        yield event("error", code=problem["code"], message=problem["message"], param=problem["param"])
    finally:
        await events.aclose()


def new_id() -> str:
    """The id of a response."""
    return f"resp_{uuid.uuid4().hex}"
