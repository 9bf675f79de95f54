"""The released prompts once more, slowly: text and label masks, piece by piece.

Nothing is shared with the chat template: a prompt is glued together, cut at its placeholders, and every piece goes
through the SentencePiece library on its own.
"""

import re
from typing import Any

PLACEHOLDER, IGNORE = -200, -100
BOS = 1
SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)


def training_row(library: Any, turns: list[str], frames: int) -> tuple[str, list[int], list[int] | None]:
    """Prompt, ids and labels of turns that alternate question and answer.

    The labels are None where the boundaries of the rounds, found by tokenising each alone, do not add up to the number
    of known tokens: the official code warns and masks the whole row.
    """
    prompt = SYSTEM.format("user") + " "
    for i, turn in enumerate(turns):
        prompt += f"ASSISTANT: {turn}</s>" if i % 2 else f"USER: {place_visuals(turn, frames)} "
    ids = to_ids(library, prompt)
    labels, at = [IGNORE], 1
    for text in prompt.split("</s>")[:-1]:
        parts = text.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        masked = len(to_ids(library, f"{parts[0]} ASSISTANT: ")) - 2  # the start token and the trailing blank
        length = len(to_ids(library, text))  # its start token stands for the end token of the round
        labels += [IGNORE] * masked + ids[at + masked : at + length]
        at += length
    return prompt, ids, labels if at == sum(i != library.unk_id() for i in ids) else None


def question_row(library: Any, question: str, frames: int) -> tuple[str, list[int]]:
    """Prompt and ids of a question about a video."""
    prompt = f"{SYSTEM.format('human')} USER: {'<image>' * frames}\n{question} ASSISTANT:"
    return prompt, to_ids(library, prompt)


def place_visuals(message: str, frames: int) -> str:
    """Markers at the end go to the front; a video is as many images as it has frames, and never more."""
    for marker in ("<image>", "<video>"):
        end = len(message)
        while message[:end].endswith(marker):
            end -= len(marker)
        if end < len(message):
            message = f"{message[end:]}\n{message[:end].strip()}"
            break
    message = re.sub(f"(?:<image>){{{frames},}}", "<image>" * frames, message)
    return message.replace("<video>", "<image>" * frames)


def to_ids(library: Any, prompt: str) -> list[int]:
    """Ids of a prompt: start token, then its pieces with a placeholder between."""
    ids = [BOS]
    for i, piece in enumerate(prompt.split("<image>")):
        ids += ([PLACEHOLDER] if i else []) + piece_ids(library, piece)
    return ids


def piece_ids(library: Any, piece: str) -> list[int]:
    """Ids of one piece: a blank in front of it, none behind an end token."""
    ids: list[int] = []
    for i, text in enumerate(piece.split("</s>")):
        if i:
            ids.append(library.eos_id())
        pieces = library.encode(text, out_type=str) if text else []
        if i and pieces and not text.startswith(" "):  # the library itself puts a blank in front
            pieces = [*([pieces[0][1:]] if len(pieces[0]) > 1 else []), *pieces[1:]]
        ids += [library.piece_to_id(token) for token in pieces]
    return ids
