"""Judges: a server that speaks the OpenAI protocol, or a local Hugging Face model."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from videopanda.data.openai_client import openai_client

MAX_TOKENS = 128  # of a verdict; the objects that are asked for take about twenty
SETTINGS = {"temperature": 0.0, "seed": 0, "max_tokens": MAX_TOKENS}
REASONING_TOKENS = 4096  # for models that think before they answer, whose thoughts count, too
_LONGEST_WAIT = 30.0  # seconds between two tries


class JudgeError(Exception):
    """A failed call. `final` means that no other call will succeed either."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Reply:
    """What a judge said, and the model name it reported."""

    text: str
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None


class Judge(Protocol):
    """Answers a conversation, as deterministically as possible."""

    name: str  # the pinned model
    settings: dict[str, Any]  # with which it is asked

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Raises `JudgeError`."""
        ...


class RemoteJudge:
    """A model behind `<base_url>/chat/completions`; the key is read by the client from OPENAI_API_KEY.

    Busy and broken servers (429, 5xx, no connection, too slow) are retried by the client, up to `retries` times.
    """

    def __init__(self, name: str, base_url: str | None = None, retries: int = 5, timeout: float = 60.0):
        self.name, self.retries = name, retries
        self.settings = dict(SETTINGS)  # without what the model has refused
        self._client = openai_client(base_url, timeout, retries)

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Ask with temperature 0, if the model accepts it."""
        import openai

        for attempt in range(self.retries + 1):
            try:
                return self._ask_once(messages)
            except _NoCompletionError as error:
                reason = str(error)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise JudgeError(str(error), final=True) from error
            except openai.OpenAIError as error:
                is_away = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
                raise JudgeError(f"{error} {error.__cause__ or ''}".strip(), final=is_away) from error
            if attempt < self.retries:
                time.sleep(min(0.5 * 2**attempt, _LONGEST_WAIT))
        raise JudgeError(reason)

    def _ask_once(self, messages: list[dict[str, str]]) -> Reply:
        content = self._post(messages)
        try:
            said = json.loads(content)
            text, usage = _content(said["choices"][0]["message"]), said.get("usage") or {}
            if not text and self.settings.get("max_tokens") == MAX_TOKENS:  # used up by its thinking
                self.settings = {**self.settings, "max_tokens": REASONING_TOKENS}
                return self._ask_once(messages)
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            return Reply(text, str(said.get("model", "")), *tokens)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _NoCompletionError(f"the server sent no chat completion: {content[:80]!r}") from error

    def _post(self, messages: list[dict[str, str]]) -> str:
        """The response; retries without settings that the model refuses (as reasoning models do)."""
        import openai

        while True:
            settings = self.settings
            # As text: the client trusts its server and passes on anything, but this server may be broken.
            body = {"model": self.name, "messages": messages, **settings}
            try:
                return self._client.post("/chat/completions", cast_to=str, body=body)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = next((name for name in settings if _refuses(error, name)), None)
                if refused is None:
                    raise
                longer = {"max_completion_tokens": REASONING_TOKENS} if refused == "max_tokens" else {}
                self.settings = {name: value for name, value in settings.items() if name != refused} | longer


def _refuses(error: Any, setting: str) -> bool:
    """Whether a server's error is about this setting."""
    about = getattr(error, "param", None)
    return about == setting if about else re.search(rf"\b{setting}\b", str(error)) is not None


def _content(message: Any) -> str:
    """The text of a message, or of its parts. Reasoning does not count."""
    content = message["content"] if "content" in message else message["refusal"]
    if isinstance(content, list):
        content = "".join(
            part.get("text") or "" for part in content if part.get("type", "text") in ("text", "output_text")
        )
    return str(content or "")


class _NoCompletionError(Exception):
    """A successful response without a completion."""


class LocalJudge:
    """A causal language model with a chat template in a folder, answering greedily."""

    def __init__(self, folder: Path, device: str | None = None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from videopanda.evaluation.provenance import weights_sha256

        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} contains no model")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {folder} has no chat template")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = model.to(device).eval()
        self.settings = dict(SETTINGS)
        self.name = f"{folder.resolve().name} {(weights_sha256(folder) or '')[:16]}".strip()

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Ask; the reply ends after `MAX_TOKENS` tokens."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        start = inputs["input_ids"].shape[1]
        output = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, num_beams=1)
        text = self.tokenizer.decode(output[0, start:], skip_special_tokens=True)
        return Reply(text, self.name, start, int(output.shape[1]) - start)
