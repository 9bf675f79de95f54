"""Chat templates of language models, taught where a video or an image stands."""

from typing import Any

from jinja2 import TemplateError

from videopanda.models.prompts import VICUNA_CHAT_TEMPLATE

# Put in front of a template that knows only text: the parts of a message become one text with markers.
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
_PROBE = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}]


def visual_chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The chat template of a tokenizer, or the given one, in a form that marks videos and images.

    `template` is jinja text or the name "vicuna", the layout of the released model. A template that handles content
    parts itself stays as it is.

    Raises:
        ValueError: there is no template, or it does not show what a user says.
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
            return candidate
    raise ValueError("the chat template does not show the question of a user: pass another with --chat-template FILE")


def _marks_videos(tokenizer: Any, template: str) -> bool:
    try:
        text = tokenizer.apply_chat_template(_PROBE, chat_template=template, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError):
        return False
    return text.count("<video>") == 1 and "What moves?" in text
