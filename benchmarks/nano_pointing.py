"""Teach the language model of nano to copy the times in front of frames, by pointing one head of its attention at them.

    torchrun --nproc-per-node 2 benchmarks/nano_pointing.py --output OUT --steps 900 --lr 2e-4

An answer such as "between 2.5 and 3.5 seconds" repeats numbers of the prompt. Loss on answers alone did not teach this
in an hour (docs/notebook.md). Where each digit of an answer stands in the prompt is known, so the attention of one head
gets a loss of its own: minus the logarithm of its weight on that token. The vision part and the embeddings are frozen.
Exact times are asked about all clips but a share of `--usual`, which keep what the model knows.

The run starts from `nano_pointing.safetensors`, where the last one ended (the language model without embeddings, in
bfloat16), and leaves its own weights there.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from videopanda.data.collate import Collator
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.models.load import load_checkpoint
from videopanda.models.visual import VISUAL_INPUTS
from videopanda.training.packing import set_rows

LAYER, HEAD, WEIGHT = 4, 3, 0.3  # what is pointed, and the weight of its loss
MAX_LENGTH, WARMUP = 768, 30
ENDLESS = 10_000_000
WEIGHTS = Path(__file__).with_suffix(".safetensors")


class Pointing:
    """Where digits of answers are copied from."""

    def __init__(self, tokenizer):
        tokens = {tokenizer.convert_tokens_to_ids(text): text for text in "0123456789."}
        self.text = tokens
        self.digits = torch.tensor([token for token, text in tokens.items() if text != "."])
        self.opening = tokenizer.convert_tokens_to_ids("<")

    def numbers(self, ids: list[int]) -> Iterator[tuple[int, str]]:
        """Place and text of every number."""
        at = 0
        while at < len(ids):
            end = at
            while end < len(ids) and ids[end] in self.text:
                end += 1
            if text := "".join(self.text[token] for token in ids[at:end]).strip("."):
                yield at, text
            at = end + 1

    def pairs(self, ids: list[int], labels: list[int]) -> Iterator[tuple[int, int]]:
        """The token that predicts a digit of a time, and the token to copy, where only one frame has this time."""
        answers = next(at for at, label in enumerate(labels) if label >= 0)
        stamps = defaultdict(list)
        for at, text in self.numbers(ids[:answers]):
            if ids[at - 1] == self.opening:
                stamps[text].append(at)
        for at, text in self.numbers(ids):
            if at >= answers and labels[at] >= 0 and "." in text and len(stamps[text]) == 1:
                yield from ((at + k - 1, stamps[text][0] + k) for k in range(len(text)))


def samples(seed: int, usual: float, rank: int, world: int) -> Iterator[Sample]:
    """Clips with exact times and usual ones."""
    exact = ScenesDataset(ENDLESS, seed=seed, captions=0, wordings=0.7, exact_times=1.0)
    others = ScenesDataset(ENDLESS, seed=seed + 1, captions=0, wordings=0.7, outside=0.06)
    for index in range(rank, ENDLESS, world):
        if np.random.default_rng([seed, index, 5]).random() < usual:
            yield others[index]
            continue
        sample = exact[index]
        kinds = defaultdict(list)
        for turns in sample.conversations:
            answer = turns[0].answer
            number = "time" if re.search(r"\d\.\d", answer) else "other"
            kinds["between" if "between" in answer else "list" if answer.count(",") > 2 else number].append(turns)
        kept = [*kinds["list"][:1], *kinds["time"][:2], *kinds["between"][:7], *kinds["other"][:4]]
        yield replace(sample, conversations=tuple(kept))


def main() -> None:
    """Train, and save a model folder every 100 steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rows", type=int, default=2, help="clips per step and process")
    parser.add_argument("--lr", type=float, default=9e-4)
    parser.add_argument("--usual", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=73)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    model, processor = load_checkpoint(arguments.model, torch.float32)
    processor.timestamps = model.config.timestamps = "frame"
    language_model, words = model.get_decoder(), model.get_input_embeddings().weight
    language_model.load_state_dict(load_file(WEIGHTS), strict=False)
    language_model.set_attn_implementation("eager")  # which returns its weights
    collator = Collator(processor, MAX_LENGTH)
    set_rows(collator, model)
    pointing, clips = Pointing(processor.tokenizer), samples(arguments.seed, arguments.usual, rank, world)
    model.requires_grad_(False)
    trained = [weight.requires_grad_() for weight in language_model.parameters() if weight is not words]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    sums = np.zeros(3)
    for step in range(arguments.steps):
        left = 1 - step / arguments.steps
        rate = arguments.lr * min((step + 1) / WARMUP, 1, 0.1 + 0.9 * left / 0.4)
        optimizer.param_groups[0]["lr"] = rate
        batch = collator([next(clips) for _ in range(arguments.rows)])
        labels = batch.pop("labels")
        with torch.no_grad():
            visuals = model.encode(batch)
        batch = {name: value for name, value in batch.items() if name not in VISUAL_INPUTS["video"]}
        outputs = model.model(**batch, mm_encoder_outputs={"video": visuals}, output_attentions=True, use_cache=False)
        is_answer = labels[:, 1:] >= 0
        target = labels[:, 1:][is_answer]
        logits = outputs.last_hidden_state[:, :-1][is_answer] @ words.T
        is_digit = torch.isin(target, pointing.digits)
        weight = 1.0 + is_digit
        answers = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        copied = [
            (row, *pair) for row, ids in enumerate(batch["input_ids"].tolist())
            for pair in pointing.pairs(ids, labels[row].tolist())
        ]  # fmt: skip
        rows, places, sources = torch.tensor(copied or [(0, 0, 0)]).T
        pointed = outputs.attentions[LAYER][rows, HEAD, places, sources]
        (answers - WEIGHT * bool(copied) * (pointed + 1e-4).log().mean()).backward()
        gradient = torch.cat([weight.grad.flatten() for weight in trained])
        dist.all_reduce(gradient)
        for weight, part in zip(trained, gradient.split([weight.numel() for weight in trained])):
            weight.grad.copy_(part.view_as(weight) / world)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        right = (logits.argmax(-1) == target).float()
        sums += [answers.item(), right.mean().item(), pointed.mean().item()]
        if rank == 0 and step % 20 == 19:
            print("step {} loss {:.3f} right {:.3f} pointed {:.3f}".format(step + 1, *sums / 20), flush=True)
            sums[:] = 0
        if rank == 0 and (step % 100 == 99 or step + 1 == arguments.steps):
            model.save_pretrained(arguments.output)
            processor.save_pretrained(arguments.output)
            weights = {name: each for name, each in language_model.state_dict().items() if "embed" not in name}
            save_file({name: each.to(torch.bfloat16) for name, each in weights.items()}, WEIGHTS)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
