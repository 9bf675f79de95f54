"""Protects the tokens that training is about: the exact ids under the loss, for every layout of chats that is in use.

The ids are written down, not computed: nothing that renders, tokenises or masks can change them unseen. Those of the
first answer under Vicuna's template are the official ones (`golden/prompts_and_labels.json`).
"""

from pathlib import Path

import pytest

from chat_templates import BARS, CHATML, INST
from golden_checks.data import load_tokenizer
from tiny import clip, tiny_processor
from videopanda.data.collate import IGNORE, Collator
from videopanda.data.sample import Sample
from videopanda.models.prompts import TRAINING_SYSTEM_PROMPT, VICUNA_CHAT_TEMPLATE
from videopanda.models.videopanda import VideoPandaProcessor
from videopanda.training.chat_template import visual_chat_template
from videopanda.training.nano import CHAT_TEMPLATE

TOKENIZER = Path(__file__).parent.parent / "golden" / "tiny_tokenizer"
TURNS = (
    ("What is the man doing in the video?", "The man is playing the guitar."),
    ("Is he outdoors?", "No, he sits in a room."),
)
_MAN = [259, 310, 275, 291, 378, 370, 398, 296, 262, 281, 382, 279, 314, 389]  # "he man is playing the guitar."
_ROOM = [397, 376, 399, 368, 259, 352, 279, 374, 282, 260, 368, 377, 376, 376, 388, 389]  # "No, he sits in a room."
# With a blank before the answer and </s> behind it.
SPACED = ([319, *_MAN, 2, 368, *_ROOM, 2], "The man is playing the guitar.</s> No, he sits in a room.</s>")
# template, system prompt, ids under the loss, and what they say
LAYOUTS = {
    "vicuna": (VICUNA_CHAT_TEMPLATE, TRAINING_SYSTEM_PROMPT, *SPACED),
    "nano": (CHAT_TEMPLATE, "", *SPACED),
    "llama-2": (INST, "", *SPACED),
    "chatml": (
        CHATML,
        "",
        [385, *_MAN, 419, 13, *_ROOM, 419, 13],  # 419 is one token, and the line end behind it belongs to the turn
        "The man is playing the guitar.<|im_end|>\nNo, he sits in a room.<|im_end|>\n",
    ),
    "phi-3": (
        BARS,
        "",
        [385, *_MAN, 63, 127, 286, 381, 127, 65, 13, *_ROOM, 63, 127, 286, 381, 127, 65, 13],
        "The man is playing the guitar.<|end|>\nNo, he sits in a room.<|end|>\n",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tokens_under_the_loss(layout):
    template, system, ids, text = LAYOUTS[layout]
    tokenizer = load_tokenizer(TOKENIZER)
    if layout == "chatml":
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    processor = VideoPandaProcessor(
        tiny_processor().video_processor, tokenizer, chat_template=visual_chat_template(tokenizer, template)
    )
    batch = Collator(processor, 1000)([Sample("x", (clip(),), (TURNS,), system)])
    supervised = [label for label in batch["labels"][0].tolist() if label != IGNORE]
    assert supervised == ids
    assert tokenizer.decode(ids) == text
