"""OpenAI's Responses API, as another form of a chat completion: the request, the reply, and the events of a stream.

Responses are not stored: every request contains the whole conversation, as input items with the content parts of
either API.
"""

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from videopanda.inference.request import Finished, RequestStats, TextDelta
from videopanda.serving.protocol import ChatRequest, FrameChoice, Nothing, ResponseFormat, Strict, reason_of

_SAME = ("model", "temperature", "top_p", "stream", "metadata", "user", "safety_identifier", "prompt_cache_key")


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
    prompt_cache_retention: str | None = None
    store: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    service_tier: str | None = None
    _chat: ChatRequest = PrivateAttr()

    @model_validator(mode="after")
    def _as_chat(self) -> "ResponsesRequest":
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages += [_message(item) for item in self.input]
        fields = {name: getattr(self, name) for name in _SAME}
        fields |= {"max_tokens": self.max_output_tokens, "video": self.video.model_dump(), "messages": messages}
        fields["response_format"] = self.text and self.text.format
        try:
            self._chat = ChatRequest.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])).replace("messages", "input", 1)
            raise ValueError(f"{place}: {reason_of(first)}") from error
        return self

    @property
    def chat(self) -> ChatRequest:
        """The same request as a chat completion."""
        return self._chat


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """An input item as a message; items of output are accepted unchanged."""
    if item.get("type", "message") != "message":
        raise ValueError(f"input items of type {item['type']!r} are not supported: send messages")
    content = item.get("content")
    parts = [_part(part) for part in content] if isinstance(content, list) else content
    rest = {name: value for name, value in item.items() if name not in ("type", "id", "status", "content")}
    return {**rest, "content": parts}


def _part(part: Any) -> Any:
    """A content part of the Responses API as one of chat completions; others are unchanged.

    Fields that are not translated are kept: they choose frames, or are refused.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None

    def rest(*translated: str) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name not in translated}

    if kind == "output_text":
        return {**rest("annotations", "logprobs"), "type": "text"}
    if kind == "input_text":
        return {**part, "type": "text"}
    if kind == "input_image" and part.get("file_id") is not None:
        return {**rest("file_id", "detail"), "type": "file", "file": {"file_id": part["file_id"]}}
    if kind == "input_image":
        address = {"url": part.get("image_url"), "detail": part.get("detail") or "auto"}
        return {**rest("detail"), "type": "image_url", "image_url": address}
    if kind == "input_video" and part.get("video_url") is not None:
        return {**part, "type": "video_url"}
    if kind == "input_file" and part.get("file_url") is not None:
        address = {"url": part["file_url"]}
        return {**rest("file_url", "filename", "detail"), "type": "video_url", "video_url": address}
    if kind == "input_file":
        file = {name: value for name, value in part.items() if name in ("file_id", "file_data", "filename")}
        return {**rest(*file, "detail"), "type": "file", "file": file}
    return part


def response(head: Mapping[str, Any], status: str, text: str = "", end: Finished | None = None) -> dict[str, Any]:
    """The response object. `head`: its id, time and model."""
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
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
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
