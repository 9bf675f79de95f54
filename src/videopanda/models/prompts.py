"""Prompts of the released model: the layout of Vicuna v1, token for token.

The official code cuts a prompt at its visual placeholders and tokenizes each piece separately, so SentencePiece puts a
space before every piece. Here the whole prompt is tokenized at once, with placeholders as tokens; the template writes
that space after them and after the start token.
"""

import re

# The released model was trained with "user" and is asked with "human".
TRAINING_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ANSWERING_SYSTEM_PROMPT = TRAINING_SYSTEM_PROMPT.replace("user", "human")

VICUNA_CHAT_TEMPLATE = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] in ('video', 'image') -%}{{ '<' ~ part['type'] ~ '>\\n' }}
{%- else -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro spaced(text, placeholder) -%}
{%- for piece in text.split(placeholder) -%}
{{ piece if loop.first else placeholder ~ (' ' ~ piece if piece else '') }}
{%- endfor -%}
{%- endmacro -%}
{%- if bos_token -%}{{ bos_token ~ ' ' }}{%- endif -%}
{%- if messages[0]['role'] != 'system' -%}{{ "SYSTEM " }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ said(message['content']) ~ ' ' }}
{%- elif message['role'] == 'user' -%}
{%- set text = spaced(spaced('USER: ' ~ said(message['content']) ~ ' ', '<video>'), '<image>') -%}
{{ text | replace('<video> <image>', '<video><image>') | replace('<image> <video>', '<image><video>') }}
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' ~ said(message['content']) ~ eos_token }}
{%- else -%}{{ raise_exception('Unknown role ' ~ message['role'] ~ ': use system, user or assistant.') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
""".replace("SYSTEM", ANSWERING_SYSTEM_PROMPT)


def place_marker(message: str) -> str:
    """Move `<video>` or `<image>` (or a run of one of them) from the end of a message to its start.

    The released model was trained this way. It then gets its own line. Elsewhere a placeholder is not moved.
    """
    match = re.fullmatch("(.*?)((?:<video>)+|(?:<image>)+)", message, re.DOTALL)
    return f"{match[2]}\n{match[1].strip()}" if match else message
