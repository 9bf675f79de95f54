"""What language models of each family do in front of a video, found by running tiny random members of them.

    python tests/models/backbone_table.py       # writes the table into docs/backbones.md again

`examine` returns a row of the table: every cell is what was found, and what must hold for all families is asserted. The
vLLM column is read from tests/vllm/backbones.json, which `python tests/vllm/families.py` writes.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "inference")]

from engine_helpers import ask_for, by_transformers, finished  # noqa: E402

from language_models import MEMBERS, WINDOW, Member, text_tokenizer, write  # noqa: E402
from tiny import clip, randomize, tiny_stab  # noqa: E402
from videopanda.data.collate import IGNORE, Collator  # noqa: E402
from videopanda.data.sample import Sample, Turn  # noqa: E402
from videopanda.data.worlds.scenes.dataset import Clip  # noqa: E402
from videopanda.inference import batch as inference_batch  # noqa: E402
from videopanda.inference.clip import encode_clips  # noqa: E402
from videopanda.inference.engine import Engine  # noqa: E402
from videopanda.models.families import fresh_config  # noqa: E402
from videopanda.models.videopanda import VideoPandaVideoProcessor  # noqa: E402
from videopanda.plan.planner import Planner  # noqa: E402
from videopanda.training.adapter import add_adapter  # noqa: E402
from videopanda.training.build import build_model  # noqa: E402
from videopanda.training.freezing import parameter_groups, rates_of, set_stage  # noqa: E402
from videopanda.training.packing import set_rows  # noqa: E402
from videopanda.training.run import make_collator  # noqa: E402
from videopanda.training.stages import StageConfig  # noqa: E402
from videopanda.training.tasks import VideoLanguage  # noqa: E402
from videopanda.training.trainer import TaskModule  # noqa: E402

PAGE = ROOT / "docs" / "backbones.md"
VLLM = ROOT / "tests" / "vllm" / "backbones.json"
BEGIN, END = "<!-- table of families: begin -->\n", "<!-- table of families: end -->\n"
COLUMNS = (
    "family",
    "`<video>` is",
    "word embeddings",
    "trains",
    "a row of training holds",
    "RoPE scaling",
    "window",
    "32k visual tokens",
    "system turn",
    "thoughts",
    "vLLM",
)
STAB = tiny_stab("paper")
FIELDS = {f"stab.{name}": getattr(STAB, name) for name in ("hidden_size", "patch_size", "image_size", "num_heads")}
VISUAL_TOKENS = 1 << 15
CHAT = (Turn("What colour is the circle?", "The circle is red."), Turn("And where?", "left"))
VIDEOS = [
    Clip(clip(n, *size, n), tuple(range(n)), float(n)) for n, size in ((3, (30, 40)), (5, (48, 24)), (9, (30, 40)))
]
SAMPLES = [
    Sample("clip", (VIDEOS[0],), (CHAT, (Turn("How many?", "2"),))),
    Sample("other", (VIDEOS[1],), ((Turn("How many circles?", "none at all"),),)),
]
# Float32. Worst measured: 9e-6 in logits of up to 6 (Qwen3.5 in passes: 8.7e-5).
LOGITS = 3e-4


def made(member: Member, folder: Path) -> tuple[Any, Any]:
    """What `init` makes of a member, with a vision part without zero weights, and its processor."""
    template = "vicuna" if member.template == "vicuna" else None
    model, processor = build_model(folder, seed=3, preset="paper", fields=FIELDS, chat_template=template)
    randomize(model.model.stab)
    return model.eval(), processor


@torch.no_grad()
def vocabulary(member: Member, model: Any, plain: Any) -> str:
    """Where the placeholders are; text must have the logits of the language model, bit for bit."""
    ids = torch.arange(3, 40)[None]
    rows = plain.config.vocab_size
    assert torch.equal(model(ids).logits[..., :rows], plain(ids).logits)
    assert model.config.video_token_id == len(text_tokenizer(None))
    return "a spare row" if model.config.text_config.vocab_size == rows else "a new row"


@torch.no_grad()
def embeddings(model: Any, processor: Any) -> str:
    """Tied or not; where words are multiplied, fresh visual tokens must have their size."""
    embedding, width = model.get_input_embeddings(), model.config.text_config.hidden_size
    assert (model.lm_head.weight is embedding.weight) is model.config.tie_word_embeddings
    kind = "tied" if model.config.tie_word_embeddings else "untied"
    ids = torch.arange(3, 250)
    factor = float((embedding(ids) / embedding.weight[ids]).median())
    if factor == 1:
        return kind
    assert abs(factor / width**0.5 - 1) < 1e-5
    fresh, _ = build_model(model.config._folder, seed=4, preset="paper", fields=FIELDS)
    (visual,) = fresh.encode(processor.video_processor(VIDEOS[:1], return_tensors="pt"))
    ratio = float(visual.tokens.pow(2).mean().sqrt() / embedding(ids).pow(2).mean().sqrt())
    assert 0.5 < ratio < 2, ratio
    return f"{kind}, × √width, visual tokens alike"


def training(model: Any, processor: Any) -> str:
    """Three steps each of a frozen language model, of LoRA, and of all: what changes, and that the loss falls."""
    ways = {"frozen": {"language_model_lr": 0.0}, "LoRA": {"lora_rank": 4}, "whole": {}}
    for way, settings in ways.items():
        stage = StageConfig("finetune", **{"vision_lr": 1e-2, "language_model_lr": 1e-2, **settings})
        tuned = copy.deepcopy(model)
        before = {id(weight): weight.clone() for weight in tuned.parameters()}
        vision = {id(weight) for part in tuned.vision_modules().values() for weight in part.parameters()}
        tuned = add_adapter(tuned, stage) if stage.lora_rank else tuned
        rates = rates_of(stage, tuned)
        set_stage(tuned, rates)
        collator = make_collator(stage, processor)
        set_rows(collator, tuned)
        module = TaskModule(tuned, VideoLanguage(), seed=0).train()
        optimizer = torch.optim.AdamW(parameter_groups(tuned, rates, 0.0))
        batch, losses = collator(SAMPLES), []
        for number in range(3):
            loss = module({**batch, "number": number})["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0], (way, losses)
        changed = {id(w) for w in tuned.parameters() if id(w) in before and not torch.equal(w, before[id(w)])}
        text = {id(weight) for weight in tuned.get_decoder().parameters() if id(weight) in before}
        assert bool(changed & text) is (way == "whole"), way
        assert changed & vision or way == "LoRA"  # whose copies of the vision modules are trained
    return "frozen, LoRA, whole"


@torch.no_grad()
def rows(model: Any, processor: Any) -> str:
    """How many conversations share a row: each must have the logits that it has alone."""
    collator = Collator(processor, 4096)
    set_rows(collator, model)
    batch = collator(SAMPLES)
    together = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    known = (batch["labels"] != IGNORE).roll(-1, 1)
    found = together[known]
    singles = []
    for sample in map(collator._separated, SAMPLES):
        for turns in sample.conversations:
            alone = collator([Sample(sample.id, sample.videos, (turns,))])
            answered = (alone.pop("labels") != IGNORE).roll(-1, 1)
            singles.append(model(**alone).logits[answered])
    expected = torch.cat(singles)
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found, expected, rtol=0, atol=LOGITS)
    return "one conversation" if collator.windows is None else "several"


def answers(model: Any, processor: Any) -> None:
    """A batch with short and long prompts, in passes of 100 tokens, must give the tokens of `generate`."""
    model.generation_config.eos_token_id = None
    clips = encode_clips(model, processor, VIDEOS[1:])
    asked = [("What moves?", 0), ("Is it red or green?", 1), ("Why?", 1)]
    requests = [ask_for(processor, text, clips[i], max_new_tokens=5) for text, i in asked]
    assert (
        max(len(request.prompt_ids) for request in requests) > 10 * WINDOW
    )  # longer than windows and scaled positions
    expected = [by_transformers(model, processor, text, VIDEOS[1 + i], max_new_tokens=5) for text, i in asked]
    before, inference_batch.PASS_TOKENS = inference_batch.PASS_TOKENS, 100
    try:
        assert [reply.token_ids for reply in finished(Engine(model, processor), requests)] == expected
    finally:
        inference_batch.PASS_TOKENS = before


def long_context(member: Member) -> str:
    """A model of full width, its first layers, prefills 32k visual tokens and writes one, on the meta device."""
    kind = AutoConfig.for_model(member.kind)
    layers = len(set(kind.layer_types)) * 2 if getattr(kind, "layer_types", None) else 2
    sizes = {"num_hidden_layers": layers, "max_position_embeddings": 1 << 17, **member.wide}
    text = AutoConfig.for_model(member.kind, **sizes).to_dict()
    text["vocab_size"] += 2
    ids = {"video_token_id": text["vocab_size"] - 2, "image_token_id": text["vocab_size"] - 1}
    config = fresh_config("videopanda", "released", {}, text_config=text, **ids)
    processor = VideoPandaVideoProcessor.for_stab(config.stab_config)
    planner = Planner(config, processor, torch.bfloat16)
    frames = 8 * -(-VISUAL_TOKENS // processor.token_count(8, 1080, 1920))
    plan = planner.plan(frames, 1080, 1920)
    assert plan.visual_tokens >= VISUAL_TOKENS
    return "yes" if planner.fits_context(frames, 1080, 1920, text_tokens=100, new_tokens=100) else "no"


def system_turn(processor: Any) -> str:
    """What becomes of a system message: it is kept, or refused by the template; it is never lost."""
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}
    system = {"role": "system", "content": "Be brief."}
    plain = processor.apply_chat_template([question], add_generation_prompt=True)
    assert plain.count("<video>") == 1
    try:
        text = processor.apply_chat_template([system, question], add_generation_prompt=True)
    except TemplateError:
        return "refused"
    assert text.count("Be brief.") == text.count("<video>") == 1
    before, after = text.split("Be brief.")
    of_its_own = before.count("system") > 0 or after.lstrip().startswith(("USER", "<|im_end|>"))
    return "yes" if of_its_own else "in the question"


def thoughts(member: Member, processor: Any) -> str:
    """Whether the model may think first. If so it does not, in training as in answers, for every answer of a chat."""
    collator = Collator(processor, 4096)
    ids = collator([SAMPLES[0]])
    text = processor.decode(ids["labels"][ids["labels"] != IGNORE])
    question = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": CHAT[0].question}]}]
    reply = [{"role": "assistant", "content": CHAT[0].answer}, {"role": "user", "content": CHAT[1].question}]
    rendered = [processor.apply_chat_template(m, add_generation_prompt=True) for m in (question, question + reply)]
    for turn, prompt in zip(CHAT, rendered):  # what is trained follows what the model is asked with
        whole = processor.apply_chat_template(
            [*(question if turn is CHAT[0] else question + reply), {"role": "assistant", "content": turn.answer}]
        )
        assert whole.startswith(prompt)
        assert turn.answer in text
    assert "think" not in text
    if "enable_thinking" not in str(processor.chat_template):
        return "–"
    free = processor.apply_chat_template(question, add_generation_prompt=True, enable_thinking=True)
    assert free != rendered[0]
    return "off" if "<think>\n\n</think>" in rendered[0] or "think" not in rendered[0] else "on"


def published(name: str, member: Member, folder: Path) -> None:
    """The language model of a vision-language release must be the one that it is by itself."""
    write(folder, member, published=True)
    model, _ = build_model(folder, seed=3, preset="paper", fields=FIELDS)
    write(folder / "text", member)
    assert type(model.model.language_model) is type(AutoModelForCausalLM.from_pretrained(folder / "text").base_model)


def examine(name: str, folder: Path) -> list[str]:
    """The row of a family."""
    member = MEMBERS[name]
    write(folder / "plain", member)
    plain = AutoModelForCausalLM.from_pretrained(folder / "plain").eval()
    model, processor = made(member, folder / "plain")
    model.config._folder = folder / "plain"
    if member.published:
        published(name, member, folder / "published")
    served = json.loads(VLLM.read_text(encoding="utf-8"))["families"] if VLLM.is_file() else {}
    row = [name, vocabulary(member, model, plain), embeddings(model, processor), training(model, processor)]
    row += [rows(model, processor)]
    answers(model, processor)
    rope = member.rope or {}
    kinds = {part["rope_type"] for part in (rope, *rope.values()) if isinstance(part, dict) and "rope_type" in part}
    row += [", ".join(sorted(kinds - {"default"})) or "–", "yes" if member.fields.get("sliding_window") else "–"]
    row += [long_context(member), system_turn(processor), thoughts(member, processor), served.get(name, "not tried")]
    return row


def line(cells: list[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |\n"


def with_table(text: str, table: list[list[str]]) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    head = line(list(COLUMNS)) + "|" + "---|" * len(COLUMNS) + "\n"
    return before + BEGIN + head + "".join(map(line, table)) + END + after


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = [examine(name, Path(place, str(i))) for i, name in enumerate(MEMBERS)]
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
