"""Prepares prompts for the engine: maps roles to those of the template and rejects prompts that are too long. Templates
of checkpoints run on untrusted text here, outside the engine's thread and within limits.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import TemplateError

from videopanda.serving.errors import ContextLengthError, ServeError

TEMPLATE_SECONDS = 5.0
SLICE = 1 << 15  # characters tokenized at once, so that a giant text is refused after its first slices

Message = dict[str, Any]


class PromptRules:
    """Renders and checks conversations with the chat template and the tokenizer of a checkpoint.

    Messages are those of a chat template, with a list of parts as content.
    """

    def __init__(self, processor: Any, context: int):
        self.processor, self.context = processor, context
        self.placeholders = processor.video_token, processor.image_token
        self.has_system_role = self._knows_system()

    def _knows_system(self) -> bool:
        """Whether the template writes a system message as one. Others render it as a model turn, or refuse it."""
        system, user = "a probe", "a question"
        turns = [_message("system", system), _message("user", user)]
        try:
            text = self.render(turns)
        except ServeError:
            return False
        named = "system" in text or any(f"{quote}system{quote}" in str(self.processor.chat_template) for quote in "'\"")
        return named and system in text and user in text

    def fold(self, messages: Sequence[Message]) -> list[Message]:
        """Treat `developer` as `system`; one system message may lead, later ones are prepended to the next user
        message. If the template has no system role, so is the leading one.
        """
        folded: list[Message] = []
        pending: list[str] = []
        for message in messages:
            text = "".join(part.get("text", "") for part in message["content"])
            if message["role"] in ("system", "developer"):
                pending.append(text)
                continue
            if pending and not folded and self.has_system_role:
                folded.append(_message("system", "\n\n".join(pending)))
                pending = []
            if pending and message["role"] == "user":
                message = {**message, "content": _opened(message["content"], "\n\n".join(pending) + "\n\n")}
                pending = []
            folded.append(message)
        return folded

    def check(self, messages: Sequence[Message]) -> None:
        """Check that a conversation can be rendered, is complete, and fits into the context.

        Raises:
            ContextLengthError: its text alone has more tokens than the context.
            ServeError: the template refuses it or takes too long, or its text contains a placeholder.
        """
        if not any(part.get("text", "").strip() for part in messages[-1]["content"]):
            raise ServeError("the last message has no text", "messages")
        for number, message in enumerate(messages):
            text = "".join(part.get("text", "") for part in message["content"])
            for token in self.placeholders:
                if token in text:
                    reason = f"text must not contain {token}: send the video or image as a separate content part"
                    raise ServeError(reason, f"messages[{number}].content")
        text = self.render(messages)
        shown = sum(part["type"] != "text" for message in messages for part in message["content"])
        if sum(map(text.count, self.placeholders)) != shown:
            raise ServeError(f"text must not produce {' or '.join(self.placeholders)} in the prompt", "messages")
        tokens = 0
        for count, start in enumerate(range(0, len(text), SLICE), 1):
            tokens += len(
                self.processor.tokenizer([text[start : start + SLICE]], add_special_tokens=False).input_ids[0]
            )
            if tokens - 2 * count > self.context:  # a cut may split one token into two
                raise ContextLengthError(
                    f"the text of this conversation is longer than the model's context length, {self.context} tokens: "
                    "shorten it",
                    "messages",
                )

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, with one placeholder for each video and image. Raises ServeError."""
        try:
            with _limited(TEMPLATE_SECONDS):
                return str(
                    self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
                )
        except (TemplateError, TypeError, ValueError) as error:  # raised by templates for turns they do not accept
            raise ServeError(f"the chat template refuses this conversation: {error}"[:500], "messages") from error
        except (TimeoutError, MemoryError) as error:
            raise ServeError(
                "the chat template takes too much time or memory for this conversation", "messages"
            ) from error


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _opened(content: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Content with `text` prepended to its first text; videos and images stay before it."""
    first = next((i for i, part in enumerate(content) if part["type"] == "text"), len(content))
    own = "".join(part["text"] for part in content[first : first + 1])
    return [*content[:first], {"type": "text", "text": text + own}, *content[first + 1 :]]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a template of this thread that takes longer. Jinja does not limit loops."""
    deadline = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None
        if time.monotonic() > deadline:
            raise TimeoutError
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
