"""The part of a reply that is meant for the reader: without thoughts, markup and the special tokens of chat models."""

import re
import unicodedata

from videopanda.evaluation.scoring.choice_patterns import (
    ASKED,
    BOX,
    CYRILLIC,
    DECORATION,
    HTML,
    STRUCK,
    TAG,
    TEX,
    TEX_TEXT,
)

_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>", re.IGNORECASE)
_THOUGHT = re.compile(r"[<\[◁](/?)(?:think|thinking|thought|reasoning|analysis)[>\]▷]", re.IGNORECASE)
_END = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|end|return|end\W?of\W?sentence)\|>|</s>|<eos>|<end_of_turn>",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"<\|[^|>]{1,40}\|>|<s>|<bos>|<pad>|<unk>|<start_of_turn>\s*(?:model|assistant)?", re.IGNORECASE)
_ARABIC = str.maketrans("،؛؟", ",;?")
_SPACE = re.compile(r"[^\S\n]{2,}")
_ASKER = re.compile(
    r"(?<=\S)\s*^[ \t]*(?:human|user|(?:next\s+)?question(?:\s*\d+)?)\s*:.*", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_LABEL = re.compile(r"^\W*(?:final\s+)?answer\W*:", re.IGNORECASE)
_ROLE = re.compile(r"^[ \t]*(?:assistant|model)\s*:", re.IGNORECASE | re.MULTILINE)


def final_text(reply: str) -> str:
    """What a reply tells its reader, in compatible characters (full-width letters become plain ones).

    Thoughts go (`<think>…</think>`, also with the opening tag in the prompt), and what follows an end token
    or is the next question of an invented dialogue. A reply
    that ends within its thoughts tells nothing.
    """
    text = unicodedata.normalize("NFKC", reply).translate(_ARABIC)
    if channels := list(_FINAL_CHANNEL.finditer(text)):
        text = text[channels[-1].end() :]
    text = without_thoughts(text)
    text = _TOKEN.sub(" ", next(filter(str.strip, _END.split(text)), ""))
    return _SPACE.sub(" ", _ROLE.split(_ASKER.sub("", text))[-1])


def short_answer(reply: str) -> str:
    """The text of a short answer: what the last box or answer tag holds, else the final text without "answer:"."""
    text = final_text(reply)
    if boxes := sorted((*BOX.finditer(text), *TAG.finditer(text)), key=lambda match: match.end()):
        text = TEX.sub("", boxes[-1][1])
    return _LABEL.sub("", text)


def unwrapped(text: str) -> str:
    """A reply without the markup around answers: a boxed text and one in tags become "answer: …"."""

    def box(match: re.Match[str]) -> str:
        content = TEX.sub("", match[1]).strip().strip("()")
        return f"[[{content}]]" if len(content) == 1 else f" answer: {content}. "

    text = ASKED.sub("answer:", STRUCK.sub(" ", text))
    text = TEX_TEXT.sub(r"\1", TAG.sub(lambda match: f"\nanswer: {match[1].strip()}\n", BOX.sub(box, text)))
    text = HTML.sub(r" \2 ", text)
    text = CYRILLIC.sub(lambda match: {"А": "A", "С": "C"}[match[0]], text)
    return DECORATION.sub(lambda match: "" if match[0] in "*`$__" else " ", text.replace("[[", "⟦").replace("]]", "⟧"))


def without_thoughts(text: str) -> str:
    """A text without `<think>…</think>` and the like; "" if it ends within its thoughts."""
    told, start, depth = "", 0, 0
    for match in _THOUGHT.finditer(text):
        if not depth:
            told = "" if match[1] else f"{told}{text[start : match.start()]} "  # closed only: the prompt opened it
        depth = max(0, depth + (-1 if match[1] else 1))
        start = match.end()
    return told if depth else told + text[start:]
