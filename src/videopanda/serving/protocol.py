"""The request format: OpenAI's API, with videos in the forms of vLLM, llama.cpp and DashScope.

A field that would change the answer and is not supported must not be ignored, so unknown fields are errors, and fields
that have no effect here accept only the values that have no effect. A field that is null counts as not given.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

GREEDY_BELOW = 1e-5  # temperatures below this are greedy, as in vLLM: logits divided by them overflow
MAX_PARTS = 64

Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Fps = Annotated[float, Field(gt=0, le=240, allow_inf_nan=False)]
NumFrames = Annotated[int, Field(ge=1, le=100_000)]
Text = Annotated[str, Field(max_length=1_000_000)]
Url = Annotated[str, Field(min_length=1)]
Detail = Literal["auto", "low", "high", "original"]  # of OpenAI: no effect, every image is shown at the same size


def _no_tools(value: list[Any]) -> list[Any]:
    if value:
        raise ValueError("tool calling is not supported")
    return value


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


Nothing = Annotated[list[Any], AfterValidator(_no_tools)] | None


class Strict(BaseModel):
    """Refuses unknown fields, unless they are null."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


def reason_of(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, for the one who sent it. `error` is one of pydantic's."""
    if error["type"] == "extra_forbidden":
        return "this server does not know this field: omit it"
    if error["type"] == "model_attributes_type":
        return "must be an object"
    if error["type"] == "union_tag_invalid":
        return f"type {error['ctx']['tag']!r} is not supported: use one of {error['ctx']['expected_tags']}"
    if error["type"] == "union_tag_not_found":
        return "type is missing"
    return str(error["msg"]).removeprefix("Value error, ")


def place_of(steps: Sequence[str | int]) -> str:
    """The path of a field in a request, such as messages[0].content[1].video_url.url."""
    if len(steps) > 4 and steps[0] == "messages" and steps[2] == "content":
        steps = [*steps[:4], *steps[5:]]  # without the name of the kind of part, which is pydantic's
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


# -- which frames ------------------------------------------------------------------------------------------------------
class FrameRate(Strict):
    """How many frames: `fps` per second, or `num_frames` in all."""

    fps: Fps | None = None
    num_frames: NumFrames | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "FrameRate":
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("give fps or num_frames, not both")
        return self

    @property
    def chosen(self) -> dict[str, Any]:
        """The fields that are set, of those that choose frames."""
        return self.model_dump(include=set(FrameChoice.model_fields), exclude_none=True)


class FrameChoice(FrameRate):
    """Which frames of a video to use; the arguments of `read_video`, and the baselines of `videopanda evaluate`."""

    start: Seconds | None = None
    end: Seconds | None = None
    max_side: Annotated[int, Field(ge=8, le=100_000)] | None = None
    baseline: Literal["one_frame", "shuffled"] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "FrameChoice":
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError("end must be later than start")
        return self


class MediaIo(Strict):
    """vLLM's `media_io_kwargs`."""

    video: FrameRate = Field(default_factory=FrameRate)


class ProcessorKwargs(FrameRate):
    """vLLM's `mm_processor_kwargs`, as far as they choose frames."""

    do_sample_frames: Literal[True] | None = None


# -- parts of a message ------------------------------------------------------------------------------------------------
class _Part(Strict):
    """Hints to caches of other servers; clips are cached by content here."""

    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None
    uuid: str | None = None


class TextPart(_Part):
    """Text."""

    type: Literal["text"]
    text: Text


class VideoAddress(FrameChoice):
    """Where a video is: a data URL, the id of an uploaded file, or a URL that the server may fetch."""

    url: Url
    detail: Detail = "auto"


class VideoPart(FrameChoice, _Part):
    """A video; frames are chosen in or next to `video_url`, or for all videos of the request."""

    type: Literal["video_url"]
    video_url: VideoAddress


class ImageAddress(Strict):
    """Where an image is, as for a video."""

    url: Url
    detail: Detail = "auto"


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class Data(Strict):
    """llama.cpp's video: base64, or a URL."""

    data: Url | None = None
    url: Url | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Data":
        if (self.data is None) == (self.url is None):
            raise ValueError("give data or url")
        return self


class InputVideoPart(FrameChoice, _Part):
    """A video in llama.cpp's form."""

    type: Literal["input_video"]
    input_video: Data


class FrameListPart(_Part):
    """Frames in DashScope's form: URLs of images that were taken `fps` times a second. All of them are used."""

    type: Literal["video"]
    video: Annotated[list[Url], Field(min_length=1, max_length=4096)]
    fps: Fps = 2.0


class FileRef(Strict):
    """An uploaded file, or the file itself in base64."""

    file_id: Annotated[str, Field(pattern=r"^[\w-]{1,100}$")] | None = None
    file_data: Url | None = None
    filename: Annotated[str, Field(max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "FileRef":
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("give file_id or file_data")
        return self


class FilePart(FrameChoice, _Part):
    """A file, video or image."""

    type: Literal["file"]
    file: FileRef


MediaPart = VideoPart | ImagePart | InputVideoPart | FrameListPart | FilePart


def _normalized(part: Any) -> Any:
    """A part of the Responses API as one of chat completions, and a plain string as {"url": …}.

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
        address = part.get("image_url")
        if not isinstance(address, Mapping):
            address = {"url": address, "detail": part.get("detail") or "auto"}
        return {**rest("detail"), "type": "image_url", "image_url": address}
    if kind == "input_video" and part.get("video_url") is not None:
        return _normalized({**part, "type": "video_url"})
    if kind == "input_file" and part.get("file_url") is not None:
        return {**rest("file_url", "filename", "detail"), "type": "video_url", "video_url": {"url": part["file_url"]}}
    if kind == "input_file":
        file = {name: value for name, value in part.items() if name in ("file_id", "file_data", "filename")}
        return {**rest(*file, "detail"), "type": "file", "file": file}
    if kind not in ("video_url", "image_url", "input_video", "video") or not isinstance(part.get(kind), str):
        return part
    name = "video_url" if kind == "video" else kind
    return {**rest(kind), "type": name, name: {"url": part[kind]}}


def _content(value: Any) -> Any:
    """Content as a list of parts; null, as in an assistant's message without text, is an empty one."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


Part = Annotated[
    Annotated[TextPart | MediaPart, Field(discriminator="type")],
    BeforeValidator(_normalized),
]


class ChatMessage(Strict):
    """One turn. Replies of this server are accepted unchanged."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_content), Field(max_length=MAX_PARTS)] = Field(default_factory=list)
    # Fields of other messages and of replies, which have no effect.
    name: str | None = None
    cache_control: dict[str, Any] | None = None
    refusal: str | None = None
    tool_calls: Nothing = None
    function_call: None = None
    annotations: list[Any] | None = None
    audio: None = None

    @model_validator(mode="after")
    def _only_users_show_things(self) -> "ChatMessage":
        if self.role != "user" and any(part.type != "text" for part in self.content):
            raise ValueError(f"a {self.role} message can hold only text; videos and images belong in a user message")
        if self.role != "assistant" and not self.content:
            raise ValueError("content is empty")
        return self


# -- the request -------------------------------------------------------------------------------------------------------
class StreamOptions(Strict):
    """What a stream contains in addition to the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TemplateKwargs(Strict):
    """vLLM's `chat_template_kwargs`: replies are made without thoughts."""

    enable_thinking: Literal[False] | None = None


class JsonSchema(Strict):
    """A schema that the reply must match, whether `strict` or not."""

    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type json_schema, and is required there")
        return self


class FindRequest(Strict):
    """POST /v1/find. `video` is a part of a message; fields that choose frames belong into it.

    `stream`: with progress.
    """

    video: Annotated[Annotated[MediaPart, Field(discriminator="type")], BeforeValidator(_normalized)]
    description: Annotated[str, Field(min_length=1, max_length=10_000)]
    model: Annotated[str, Field(max_length=300)] | None = None
    stream: bool = False


class ChatRequest(Strict):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    model: Annotated[str, Field(max_length=300)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]], BeforeValidator(_as_list), Field(max_length=4)
    ] = Field(default_factory=list)
    video: FrameChoice = Field(default_factory=FrameChoice)
    media_io_kwargs: MediaIo | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    # Fields of OpenAI's API that have no effect here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prompt_cache_retention: str | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Literal["none"] | None = None
    # Those of vLLM and SGLang, likewise.
    top_k: Literal[-1, 0] | None = None
    min_p: Literal[0] | None = None
    repetition_penalty: Literal[1] | None = None
    length_penalty: Literal[1] | None = None
    min_tokens: Literal[0] | None = None
    best_of: Literal[1] | None = None
    use_beam_search: Literal[False] | None = None
    ignore_eos: Literal[False] | None = None
    echo: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    chat_template_kwargs: TemplateKwargs | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "ChatRequest":
        if self.messages[-1].role != "user":
            raise ValueError('the last message must have role "user"')
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens disagree")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        given = [self.video.chosen, *(one.chosen for one in self._elsewhere)]
        if sum("fps" in one or "num_frames" in one for one in given) > 1:
            raise ValueError("video, media_io_kwargs and mm_processor_kwargs all choose frames: use one of them")
        return self

    @property
    def _elsewhere(self) -> list[FrameRate]:
        media = [] if self.media_io_kwargs is None else [self.media_io_kwargs.video]
        return media + ([] if self.mm_processor_kwargs is None else [self.mm_processor_kwargs])

    def choice_for(self, part: MediaPart) -> dict[str, Any]:
        """The frames of one part: its own choice takes precedence over that of the request. Raises ValueError."""
        chosen: dict[str, Any] = {}
        given = [self.video, *self._elsewhere]
        given += [part] if isinstance(part, FrameChoice) else []
        given += [part.video_url] if isinstance(part, VideoPart) else []
        for one in given:
            if "fps" in one.chosen or "num_frames" in one.chosen:
                chosen.pop("fps", None)
                chosen.pop("num_frames", None)
            chosen |= one.chosen
        if isinstance(part, VideoPart):
            beside, inside = part.chosen, part.video_url.chosen
            both = {**beside, **inside}
            if any(beside[name] != both[name] for name in beside) or both.keys() >= {"fps", "num_frames"}:
                raise ValueError("video_url and the part itself choose different frames")
        if "end" in chosen and chosen["end"] <= chosen.get("start", 0.0):
            raise ValueError("end must be later than start")
        return chosen

    @property
    def max_new_tokens(self) -> int | None:
        """The requested maximum length of the reply."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling_temperature(self) -> float:
        """The temperature, 0 means greedy decoding."""
        return 0.0 if (self.temperature or 0.0) < GREEDY_BELOW else float(self.temperature or 0.0)

    @property
    def schema_of_reply(self) -> dict[str, Any] | None:
        """The JSON schema that the reply must match; None: plain text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_


class ExplainRequest(ChatRequest):
    """POST /v1/explain: the question, and whether `regions` of the most important frames are looked at, too.

    `stream`: with progress.
    """

    stream_options: None = None
    regions: bool = True

    @model_validator(mode="after")
    def _shows_one_thing(self) -> "ExplainRequest":
        if len(self._visuals) != 1:
            raise ValueError(f"an explanation is about one video or image: the messages contain {len(self._visuals)}")
        if "baseline" in self.choice_for(self.visual[1]):
            raise ValueError("only an answer about the unaltered video can be explained: omit baseline")
        return self

    @property
    def _visuals(self) -> list[tuple[str, MediaPart]]:
        parts = [
            (f"messages[{i}].content[{j}]", part)
            for i, message in enumerate(self.messages)
            for j, part in enumerate(message.content)
        ]
        return [(place, part) for place, part in parts if not isinstance(part, TextPart)]

    @property
    def visual(self) -> tuple[str, MediaPart]:
        """Place and part of the video or image."""
        return self._visuals[0]
