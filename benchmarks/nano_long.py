"""Train the bundled nano-long: the nano on minutes to half an hour of the long world, in a memory of merged tokens.

    videopanda init --model src/videopanda/assets/nano --set compression.kind=pool --set compression.pool_space=2 \\
        --set text.max_position_embeddings=4096 out/long-start
    python benchmarks/nano_long.py --model out/long-start --output out/nano-long --steps 1200

The vision part stays as it is; its projection and the language model learn. So what a clip shows is encoded once:
chunks in which nothing but the lamp is shown are the same in all clips, up to their coordinates, which are added
afterwards. The tokens are those of `encode_long` (checked at the start), merged by the same `TokenMemory`. A row holds
one clip and up to 17 questions about its visits, each masked from the others. Clips come from the split "train", are
drawn on the fly and get longer. Beside the answers, the tokens of single cells are pulled towards the words for what
they show (`VideoLanguage.alignment`), as in the training of nano.

The output folder holds the newest checkpoint and a log; the same command continues from there.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_practice import practice_questions
from torch import Tensor

from videopanda.data.collate import IGNORE, Collator
from videopanda.data.row_masks import FULL_ATTENTION, row_masks
from videopanda.data.sample import Sample, Turn
from videopanda.data.worlds.long.make import pictures
from videopanda.data.worlds.long.world import (
    HEIGHT,
    PARTS,
    SIZES,
    WIDTH,
    LongQuestion,
    Story,
    make_questions,
    make_story,
)
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES
from videopanda.inference.token_memory import TokenMemory
from videopanda.models.load import load_checkpoint
from videopanda.models.visual import CELL, ChunkState, EncodedVisual
from videopanda.training.tasks import VideoLanguage

CHUNK = 4  # frames, one per second, that become one step
WINDOW = 4  # steps that are not merged, the default of `VideoSession`
# Minutes of a clip and how often, by the share of the training that is done.
LENGTHS = {
    0.0: {1.0: 0.5, 2.0: 0.5},
    0.25: {1.0: 0.2, 2.0: 0.4, 3.0: 0.2, 4.0: 0.2},
    0.5: {2.0: 0.35, 3.0: 0.2, 4.0: 0.2, 6.0: 0.15, 10.0: 0.1},
    0.75: {2.0: 0.25, 3.0: 0.2, 6.0: 0.25, 10.0: 0.25, 20.0: 0.05},
}
VALIDATION = {1.0: 12, 3.0: 12, 10.0: 6, 30.0: 3}  # minutes and clips


@dataclass(frozen=True)
class Seen:
    """A clip before its projection. content: (K, P, D) distinct steps without coordinates; number: (S,) which of them
    each step shows; words: what the cells of each distinct step show, (K, P, 4) token ids.
    """

    story: Story
    content: Tensor
    number: Tensor
    words: Tensor
    busy: int  # steps that show a visit


class Encoder:
    """Frames to steps. What shows no visit is encoded once for every colour of the lamp."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor
        stab, rules = model.model.stab, processor.video_processor
        self.coordinates, stab.coordinates = stab.coordinates, None
        inputs = rules.place_chunk(np.zeros((CHUNK, HEIGHT, WIDTH, 3), np.uint8))
        self.placement = inputs["video_placement"]
        self.rows, self.columns = (side // rules.cell_size for side in inputs["pixel_values_videos"].shape[-2:])
        self.layout = rules.token_layout({"video_placement": self.placement}, 0)  # (P, 4) of one step
        self.idle: dict[str, Tensor] = {}
        self.is_cell = self.layout[:, 3] == CELL
        self.where = self._places()
        names = ("nothing", "top", "left", *SIZES, *SHAPES, *COLOURS, *PARTS)
        self.word = {name: processor.tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in names}

    def _places(self) -> Tensor:
        """The coordinates of rows and columns of a step, (P, D), averaged as its cells are."""
        d = self.coordinates.projection.weight.shape[0]
        when, row, column = self.coordinates.projection.weight.detach().split(2 * self.coordinates.num_waves, 1)
        r_R = (torch.arange(self.rows) + 0.5) / self.rows
        c_C = (torch.arange(self.columns) + 0.5) / self.columns
        map_RCD = (self.coordinates.waves(r_R) @ row.T)[:, None] + (self.coordinates.waves(c_C) @ column.T)[None]
        space, where = self.model.config.compression.pool_space, torch.zeros(len(self.layout), d)
        for place, (_, r, c, kind) in enumerate(self.layout.tolist()):
            if kind == CELL:
                square = map_RCD[r * space : (r + 1) * space, c * space : (c + 1) * space]
                where[place] = square.flatten(0, 1).mean(0)
        self.when = when
        return where

    @torch.no_grad()
    def _encode(self, frames: np.ndarray) -> Tensor:
        """Chunks of frames (K, 4, H, W, 3) to steps without coordinates, (K, P, D)."""
        model, found = self.model.model, []
        for part in np.array_split(frames, -(-len(frames) // 8)):
            inputs = self.processor.video_processor.place([*part])
            placement, pixels = inputs["video_placement"], inputs["pixel_values_videos"]
            plan = model.stab.plan(placement, CHUNK, self.rows, self.columns, False, pixels.device)
            tokens = model.stab(pixels, placement, layout=plan).index_select(0, plan.order)
            whole = len(tokens) // len(part)
            raw = self._raw_layout()
            tokens, _ = model.compressor.clips(tokens, [raw] * len(part))
            assert whole == len(raw)
            found.append(tokens.unflatten(0, (len(part), -1)))
        return torch.cat(found)

    def _raw_layout(self) -> Tensor:
        from videopanda.models.videopanda.layout_videopanda import token_layout

        config = self.model.config.stab_config
        return token_layout(self.placement[0], config.max_cells, config.row_tokens, config.context_token)

    def __call__(self, story: Story) -> Seen:
        """Encode a story at one frame per second."""
        seconds = int(story.seconds)
        assert seconds % CHUNK == 0
        chunks = [[float(t + i) for i in range(CHUNK)] for t in range(0, seconds, CHUNK)]
        keys: list[Any] = []
        for number, chunk in enumerate(chunks):
            lamps = {story.lamp_at(t) for t in chunk}
            busy = any(v.start <= t < v.end for v in story.visits for t in chunk)
            keys.append(lamps.pop() if len(lamps) == 1 and not busy else number)
        own = [key for key in keys if isinstance(key, int)]
        new = [chunks[key] for key in own]
        for lamp in {key for key in keys if isinstance(key, str)} - self.idle.keys():
            new.append(chunks[keys.index(lamp)])
        drawn = list(pictures(story, sorted(t for chunk in new for t in chunk)))
        at = {t: i for i, t in enumerate(sorted(t for chunk in new for t in chunk))}
        frames = np.stack([np.stack([drawn[at[t]] for t in chunk]) for chunk in new]) if new else None
        content = self._encode(frames) if frames is not None else torch.zeros(0, *self.where.shape)
        for place, chunk in enumerate(new[len(own) :], len(own)):
            self.idle[story.lamp_at(chunk[0])] = content[place]
        lamps = sorted({key for key in keys if isinstance(key, str)})
        place = {key: i for i, key in enumerate([*own, *lamps])}
        content = torch.cat([content[: len(own)], *(self.idle[lamp][None] for lamp in lamps)])
        words = torch.stack([self._words(story, chunks[keys.index(key)]) for key in [*own, *lamps]])
        return Seen(story, content.half(), torch.tensor([place[key] for key in keys]), words, len(own))

    def _words(self, story: Story, chunk: list[float]) -> Tensor:
        """What each token of a step shows, (P, 4): words for the cell of a visit and its time, the lamp, or nothing."""
        words = torch.full((len(self.layout), 4), IGNORE)
        words[self.is_cell, 0] = self.word["nothing"]
        space = self.model.config.compression.pool_space
        for t in chunk:
            for visit in (v for v in story.visits if v.start <= t < v.end):
                done, kind = (t - visit.start) / (visit.end - visit.start), visit.kind
                x = {"still": 0.5, "right": 0.25 + 0.5 * done, "left": 0.75 - 0.5 * done}[kind.motion]
                r, c = int(visit.height * self.rows) // space, int(x * self.columns) // space
                here = (self.layout[:, 1] == r) & (self.layout[:, 2] == c) & self.is_cell
                part = PARTS[min(4, int(5 * t / story.seconds))]
                words[here] = torch.tensor([self.word[name] for name in (kind.size, kind.colour, kind.shape, part)])
                # Its edges reach into the cells around, of which nothing is said.
                near = self.is_cell & ~here & (words[:, 0] == self.word["nothing"])
                words[near & ((self.layout[:, 1] - r).abs() <= 1) & ((self.layout[:, 2] - c).abs() <= 1)] = IGNORE
        corner = (self.layout[:, 1] == 0) & (self.layout[:, 2] == 0) & self.is_cell
        if not bool((words[corner, 1] >= 0).any()):
            lamp = self.word[story.lamp_at(chunk[-1])]
            words[corner, :3] = torch.tensor([lamp, self.word["top"], self.word["left"]])
        return words

    def steps(self, seen: Seen) -> Tensor:
        """All steps of a clip with their coordinates, (S, P, D)."""
        count = len(seen.number)
        moments = (torch.arange(count * CHUNK) + 0.5) / (count * CHUNK)
        when_SD = (self.coordinates.waves(moments) @ self.when.T).unflatten(0, (count, CHUNK)).mean(1)
        added = (self.where + when_SD[:, None]) * self.is_cell[None, :, None]
        return seen.content[seen.number].float() + added


def remembered(encoder: Encoder, projected_SPE: Tensor, budget: int) -> Tensor:
    """Steps as a memory of `budget` tokens keeps them, (M, P, E): which ones merge is found without gradients."""
    count, places = projected_SPE.shape[:2]
    if count * places <= budget:
        return projected_SPE
    memory = TokenMemory(budget, WINDOW)
    layout = encoder.layout.repeat(count, 1)
    layout[:, 0] = torch.arange(count).repeat_interleave(places)
    memory.add(projected_SPE.detach().flatten(0, 1), layout, [float(t) for t in range(count * CHUNK)], CHUNK)
    sizes = torch.tensor([frames // CHUNK for *_, frames in memory.spans])
    owner_S = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    total = projected_SPE.new_zeros(len(sizes), *projected_SPE.shape[1:]).index_add(0, owner_S, projected_SPE)
    return total / sizes[:, None, None]


def batch_of(
    encoder: Encoder, collator: Collator, seen: Seen, kept_MPE: Tensor, questions: list[LongQuestion]
) -> dict[str, Any]:
    """One row: the clip, then its questions."""
    layout = encoder.layout.repeat(len(kept_MPE), 1)
    layout[:, 0] = torch.arange(len(kept_MPE)).repeat_interleave(kept_MPE.shape[1])
    turns = tuple((Turn(question.question, question.answer),) for question in questions)
    sample = Sample("long", (None,), turns)
    row = collator.pack(sample, [encoder.processor.video_text(layout, seen.story.seconds, None)])
    positions = torch.tensor([row.positions])
    return {
        "input_ids": torch.tensor([row.ids]),
        "labels": torch.tensor([row.labels]),
        "position_ids": positions,
        "attention_mask": row_masks([[(row.segments, row.positions)]], len(row.ids), FULL_ATTENTION),
        "mm_encoder_outputs": {"video": [EncodedVisual(kept_MPE.flatten(0, 1), layout)]},
    }


def draw(encoder: Encoder, seed: int, index: int, share: float) -> Seen:
    """Clip `index` of the training."""
    rng = np.random.default_rng([seed, index, 14])
    lengths = next(table for start, table in reversed(LENGTHS.items()) if start <= share)
    minutes = float(rng.choice(list(lengths), p=list(lengths.values())))
    story = make_story(seed, "train", index, minutes, needle_seconds=float(rng.choice([6.0, 8.0, 8.0, 10.0])))
    return encoder(story)


def budget_of(encoder: Encoder, seen: Seen, rng: np.random.Generator) -> int:
    """Tokens that the memory of a clip may hold: about as many steps as something is shown in, and those between."""
    needed = seen.busy + 2 * len(seen.story.visits) + 6
    steps = min(2048 // len(encoder.layout), max(WINDOW + 4, int(needed * rng.uniform(0.7, 1.2))))
    return steps * len(encoder.layout)


@torch.no_grad()
def validate(encoder: Encoder, collator: Collator, clips: dict[float, list[Seen]], budget: int = 2048) -> dict:
    """Share of answers whose tokens are all the most likely ones, by length and family."""
    model, right = encoder.model, {}
    for minutes, all_seen in clips.items():
        for seen in all_seen:
            questions = make_questions(seen.story)
            kept = remembered(encoder, model.model.projector(encoder.steps(seen)), budget)
            batch = batch_of(encoder, collator, seen, kept, questions)
            labels = batch.pop("labels")[0, 1:]
            known = labels != IGNORE
            logits = model(**batch, use_cache=False, logits_to_keep=known.nonzero()[:, 0]).logits[0]
            good = logits.argmax(-1) == labels[known]
            # Answers follow one another in the row, each with its end marker.
            starts = known & ~torch.cat([torch.tensor([False]), known[:-1]])
            answer = (starts.cumsum(0) - 1)[known]
            for number, question in enumerate(questions):
                for key in (f"{minutes:g} min", question.family, "all"):
                    right.setdefault(key, []).append(bool(good[answer == number].all()))
    return {key: round(float(np.mean(values)), 3) for key, values in right.items()}


def check(encoder: Encoder, clip: Seen) -> float:
    """The largest difference between these steps and those of `encode_chunk`, relative to the largest value."""
    model, frames = encoder.model, list(pictures(clip.story, [float(t) for t in range(int(clip.story.seconds))]))
    model.model.stab.coordinates = encoder.coordinates
    state, found = ChunkState(), []
    with torch.no_grad():
        for start in range(0, len(frames), CHUNK):
            inputs = encoder.processor.video_processor.place_chunk(np.stack(frames[start : start + CHUNK]))
            visual, state = model.model.encode_chunk(
                inputs["pixel_values_videos"], inputs["video_placement"], state, len(frames)
            )
            found.append(visual.tokens)
        ours = model.model.projector(encoder.steps(clip)).flatten(0, 1)
    model.model.stab.coordinates = None
    theirs = torch.cat(found)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Train, and write a model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rows", type=int, default=1, help="clips per step")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--align", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--start-share", type=float, default=0.0, help="of LENGTHS; above 0 to train a model further")
    parser.add_argument("--reuse", type=int, default=2, help="times that a clip comes, with other questions")
    parser.add_argument("--save-minutes", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, processor = load_checkpoint(options.model, torch.float32)
    encoder = Encoder(model, processor)
    collator = Collator(processor, 4096)
    task = VideoLanguage()
    for weight in model.model.stab.parameters():
        weight.requires_grad = False
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    warmup = max(1, options.steps // 30)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps))),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    saved, log, first = options.output / "training.pt", options.output / "log.jsonl", 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        scheduler.base_lrs = [options.lr]
        first = state["step"]

    def note(**values: Any) -> None:
        with log.open("a") as file:
            file.write(json.dumps(values) + "\n")
        print(values, flush=True)

    held_out = {
        minutes: [encoder(make_story(0, "validation", i, minutes)) for i in range(clips)]
        for minutes, clips in VALIDATION.items()
    }
    note(step=first, largest_difference=check(encoder, held_out[1.0][0]))
    reused: dict[int, Seen] = {}
    began, sums, last_saved = time.time(), [], time.time()
    for step in range(first, options.steps):
        for row in range(options.rows):
            number = step * options.rows + row
            # Blocks of clips, each of which comes `reuse` times.
            block, place = divmod(number, 32 * options.reuse)
            index = block * 32 + place % 32
            if index not in reused:
                reused = {key: value for key, value in reused.items() if key // 32 == block}
                share = options.start_share + (1 - options.start_share) * step / options.steps
                reused[index] = draw(encoder, options.seed, index, share)
            seen, rng = reused[index], np.random.default_rng([options.seed, number, 15])
            projected = model.model.projector(encoder.steps(seen))
            kept = remembered(encoder, projected, budget_of(encoder, seen, rng))
            batch = batch_of(encoder, collator, seen, kept, practice_questions(seen.story, rng))
            with torch.autocast("cpu", torch.bfloat16):
                text = model(**batch, use_cache=False).loss
            loss = text
            if options.align:
                words = seen.words[seen.number]
                chosen = torch.from_numpy(rng.permutation(len(words))[:40])
                align = task.alignment(
                    projected[chosen].flatten(0, 1), words[chosen].flatten(0, 1), model.get_input_embeddings().weight
                )
                loss = loss + options.align * align
                sums.append((text.item(), align.item(), len(batch["input_ids"][0])))
            else:
                sums.append((text.item(), 0.0, len(batch["input_ids"][0])))
            (loss / options.rows).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 25 == 0:
            text, align, length = np.mean(sums, 0).round(4).tolist()
            seconds = (time.time() - began) / (step + 1 - first)
            note(step=step + 1, text_loss=text, align_loss=align, tokens=length, seconds_per_step=round(seconds, 2))
            sums = []
        if time.time() - last_saved > 60 * options.save_minutes or step + 1 == options.steps:
            last_saved = time.time()
            kept_state = {"model": {name: weight.detach() for name, weight in trained.items()}, "step": step + 1}
            kept_state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            part = saved.with_suffix(".part")
            torch.save(kept_state, part)
            part.replace(saved)
            note(step=step + 1, validation=validate(encoder, collator, held_out), cpu_minutes=time.process_time() / 60)
    model.model.stab.coordinates = encoder.coordinates
    model.to(torch.bfloat16).save_pretrained(options.output / "model")
    processor.save_pretrained(options.output / "model")


if __name__ == "__main__":
    main()
