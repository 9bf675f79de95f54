"""What clients send, as in the API of OpenAI, with videos as vLLM names them. What is not known here is refused.

A field that would change the answer and is not supported must not be taken in silence, so unknown fields are errors,
and fields that do nothing here may only have the value that does nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1_000_000)]


class Strict(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class Address(Strict):
    """Where a video or image is: a data URL, the id of an uploaded file, or an address that the server may fetch."""

    url: Annotated[str, Field(min_length=1)]


class ImageAddress(Address):
    """`detail` is OpenAI's; every image is seen in one size."""

    detail: Literal["auto", "low", "high"] = "auto"


class FileId(Strict):
    """An uploaded file."""

    file_id: Annotated[str, Field(min_length=1, max_length=100)]


class TextPart(Strict):
    """Text."""

    type: Literal["text"]
    text: Text


class VideoPart(Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: Address


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class FilePart(Strict):
    """An uploaded file, video or image."""

    type: Literal["file"]
    file: FileId


Part = Annotated[TextPart | VideoPart | ImagePart | FilePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64)]
    name: str | None = None  # told apart by nobody here

    @model_validator(mode="after")
    def _only_users_show_things(self) -> "ChatMessage":
        parts = [] if isinstance(self.content, str) else self.content
        if self.role != "user" and any(part.type != "text" for part in parts):
            raise ValueError(f"a message of the {self.role} holds text only; videos belong to the user's")
        return self


class FrameChoice(Strict):
    """Which frames of all videos of the request are looked at; as the arguments of `read_video`."""

    start: Seconds | None = None
    end: Seconds | None = None
    fps: Annotated[float, Field(gt=0, le=240, allow_inf_nan=False)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_side: Annotated[int, Field(ge=8, le=100_000)] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "FrameChoice":
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("give fps or num_frames, not both")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError("end must be later than start")
        return self


class StreamOptions(Strict):
    """What a stream holds beside the text."""

    include_usage: bool = False


class ResponseFormat(Strict):
    """Plain text only."""

    type: Literal["text"]


class ChatRequest(Strict):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    model: Annotated[str, Field(max_length=300)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=4)]
        | None
    ) = None
    video: FrameChoice = Field(default_factory=FrameChoice)
    # Fields of OpenAI's that change nothing.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "ChatRequest":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: it is what is answered")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one number, and they differ")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream")
        return self

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
