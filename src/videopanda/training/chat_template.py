"""Extends chat templates of language models with placeholders for videos and images."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from videopanda.models.prompts import VICUNA_CHAT_TEMPLATE

# Put in front of a template that knows only text: the parts of a message become one text with placeholders.
_FLATTEN = """\
{#- Videos and images become markers. The template of the language model follows. -#}
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string or not message['content'] -%}
{%- set content = message['content'] -%}
{%- else -%}
{%- set content -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}{{ '<' ~ part['type'] ~ '>\\n' }}{%- endif -%}
{%- endfor -%}
{%- endset -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
_OTHER_ROLES = ("system", "developer", "tool")
_GUARD = """\
{%- for message in messages -%}
{%- if message['role'] not in ROLES -%}{{ raise_exception('Unknown role ' ~ message['role'] ~ ': use NAMES.') }}
{%- endif -%}
{%- endfor -%}
"""
# Put in front of a template that lets its model think before it answers, unless told otherwise.
_NO_THINKING = """\
{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}
"""
_PROBE = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}]
_ANSWERED = "A cat."
_ANSWER = {"role": "assistant", "content": [{"type": "text", "text": _ANSWERED}]}  # in the form of training


def read_template(name: str | None) -> str | None:
    """The chat template that a user names: "vicuna", or the text of a jinja file; None for the tokenizer's own.

    Raises:
        ValueError: no such file, or not a text.
    """
    if not name or name == "vicuna":
        return name or None
    if not Path(name).is_file():
        raise ValueError(f"--chat-template {name}: neither a file nor vicuna")
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--chat-template {name}: not a text in UTF-8") from error


def visual_chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The chat template of a tokenizer, or the given one, in a form that marks videos and images.

    `template` is jinja text or the name "vicuna", the layout of the released model. A template that handles content
    parts itself stays as it is. Where a model may think before it answers (`enable_thinking`, as of Qwen3), it does not
    unless `apply_chat_template` is told so: training teaches answers without thoughts.

    Raises:
        ValueError: there is no template; it drops the user's text, or opens a thought that no answer closes.
    """
    if template == "vicuna":
        template = VICUNA_CHAT_TEMPLATE
    template = template or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError("the tokenizer has no chat template: pass --chat-template FILE, or vicuna for Vicuna v1.5")
    for candidate in (template, _FLATTEN + template):
        if _marks_videos(tokenizer, candidate):
            return _without_thoughts(tokenizer, _guarded(tokenizer, candidate))
    raise ValueError("the chat template drops the user's question: pass another with --chat-template FILE")


def _guarded(tokenizer: Any, template: str) -> str:
    """The template, with an error for every role that it would render as a model turn."""

    def written(role: str, first: bool) -> str | None:
        messages = [{"role": role, "content": "A cat."}, {"role": "user", "content": "What moves?"}]
        try:
            return tokenizer.apply_chat_template(
                messages if first else messages[::-1], chat_template=template, tokenize=False
            )
        except (TemplateError, TypeError):
            return None

    def is_own(role: str) -> bool:
        first = role == "system"
        return written(role, first) == written("assistant", first) is not None

    if not any(map(is_own, (*_OTHER_ROLES, "unknown"))):
        return template
    known = [
        "user",
        "assistant",
        *(role for role in _OTHER_ROLES if written(role, role == "system") and not is_own(role)),
    ]
    return _GUARD.replace("ROLES", repr(known)).replace("NAMES", ", ".join(known)) + template


def _without_thoughts(tokenizer: Any, template: str) -> str:
    """The template, with thinking off unless it is asked for."""

    def prompt(**switches: bool) -> str:
        return _rendered(tokenizer, template, _PROBE, add_generation_prompt=True, **switches)

    if prompt() != prompt(enable_thinking=False):
        template = _NO_THINKING + template
    answered = _rendered(tokenizer, template, [*_PROBE, _ANSWER])
    if not answered.startswith(prompt()):
        raise ValueError(
            "the chat template opens a thought before the answer, and cannot be told not to (`enable_thinking`): pass "
            "another with --chat-template FILE"
        )
    return template


def end_tokens(tokenizer: Any, template: str, known: Set[int]) -> set[int]:
    """The ids that end an answer: the `known` ones, and the special token by which the template ends its turns.

    A base model often comes with the template of its chat model, whose turns end with another token than its texts.

    Raises:
        ValueError: the template does not write an answer right after its prompt, or ends it with plain text: a model
            would learn something else, or never to stop.
    """
    prompt = _rendered(tokenizer, template, _PROBE, add_generation_prompt=True)
    told = _rendered(tokenizer, template, [*_PROBE, _ANSWER]).removeprefix(prompt).strip()
    if not told.startswith(_ANSWERED):
        raise ValueError(
            "the chat template does not write an answer unchanged, right after its prompt (`add_generation_prompt`): "
            "pass another with --chat-template FILE"
        )
    end = told.removeprefix(_ANSWERED).strip()
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if not known.isdisjoint(ids):
        return set(known)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if not ids or ids[0] not in special:
        raise ValueError(
            f"the chat template ends an answer with {end!r}, which is no end token of this model: it would never learn "
            "to stop. Pass another template with --chat-template FILE"
        )
    return {*known, ids[0]}


def _rendered(tokenizer: Any, template: str, messages: Any, **given: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **given))


def _marks_videos(tokenizer: Any, template: str) -> bool:
    try:
        text = _rendered(tokenizer, template, _PROBE, add_generation_prompt=True)
    except (TemplateError, TypeError):
        return False
    return text.count("<video>") == 1 and "What moves?" in text


_SYSTEM_PROMPT = "{#- The system prompt of the training. -#}\n"


def with_system_prompt(template: str, prompt: str) -> str:
    """A template that puts `prompt` in front of every conversation without its own system message."""
    if template.startswith(_SYSTEM_PROMPT):  # of an earlier stage
        template = template.split("\n", 2)[2]
    return (
        f"{_SYSTEM_PROMPT}{{%- if messages[0]['role'] != 'system' -%}}{{%- set messages = [{{'role': 'system', "
        f"'content': {json.dumps(prompt)}}}] + messages -%}}{{%- endif -%}}\n{template}"
    )
