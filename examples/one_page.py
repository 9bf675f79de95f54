"""A video-language model on one page: pixels → tokens → loss → a model that answers.

    python examples/one_page.py                       # about 7 minutes of a CPU core; docs/tutorials/one_page.md
    python examples/one_page.py --steps 20 --clips 8  # only to see that it runs

The world is Scenes: clips of one or two shapes, made by this package together with true answers to four families of
questions: colour, shape, direction of motion, order of appearance. One process draws clips, another one trains on them,
and no clip is seen twice. Then the model answers questions about clips that it never saw. Those are written to H.264
files and read back with the package's reader. Its score stands beside two ways to score without looking.

In shapes of tensors: B clips, T frames, V visual tokens of a clip, Q questions about a clip, L words of a question with
its answer, N = V + Q L tokens in a row, D features of a token.
"""

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from videopanda import read_video
from videopanda.data.worlds.scenes.dataset import draw
from videopanda.data.worlds.scenes.questions import Question, make_captions, make_questions
from videopanda.data.worlds.scenes.render import write_clip
from videopanda.data.worlds.scenes.world import Difficulty, Scene, make_scene

FAMILIES = ("motion_direction", "appearance_order", "colour", "shape")
WORLD = Difficulty(max_things=2, themes=("still", "move", "order"))
T, SIDE = 8, 48  # frames of a clip, pixels along each side
CELLS = SIDE // 16  # visual tokens along each side
V, Q, L = T * CELLS * CELLS, 6, 16
PAD, END = 0, 1  # numbers of the two words that are not words


# -- 1. Pixels and words -----------------------------------------------------------------------------------------------
def questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Those of our families, in random order."""
    return [question for question in make_questions(scene, rng) if question.family in FAMILIES]


def lesson_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Q questions to learn from: up to four of our families, the rare ones first, then "Describe frame 3."

    The descriptions name all that is seen in a frame. They teach to see, the questions teach to choose.
    """
    asked = sorted(questions_about(scene, rng), key=lambda question: question.family in ("colour", "shape"))[: Q - 2]
    captions = make_captions(scene, T)[1:]
    return asked + [captions[i] for i in rng.permutation(T)[: Q - len(asked)]]


def words_of(question: str, answer: str) -> list[str]:
    """Words in a row. The question ends with the word "?", and the answer follows."""
    return [*question.lower().rstrip("?.").replace(",", " ,").split(), "?", *answer.replace(",", " ,").split()]


def make_vocabulary() -> dict[str, int]:
    """A number for each word that a thousand lessons need."""
    found = set()
    for index in range(1000):
        for item in lesson_about(make_scene(0, "train", index, WORLD), np.random.default_rng(index)):
            found |= {*words_of(item.question, item.answer)}
    return {word: number for number, word in enumerate(["<pad>", "<end>", *sorted(found)])}


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Frames of any size, uint8 (T, height, width, 3), as small squares, uint8 (T, 3, SIDE, SIDE)."""
    small = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(frame) for frame in small]).transpose(0, 3, 1, 2)


class Clips(Dataset):
    """Numbered clips, each with Q questions. Those of the split "train" are drawn, with the answers to learn.

    Those of the split "test" are real files, and only asked about.
    """

    def __init__(self, split: str, num: int, vocabulary: dict[str, int]):
        self.split, self.num, self.vocabulary = split, num, vocabulary

    def __len__(self) -> int:
        return self.num

    def scene(self, index: int) -> Scene:
        return make_scene(0, self.split, index, WORLD)

    def questions(self, index: int) -> list[Question]:
        make = lesson_about if self.split == "train" else questions_about
        return make(self.scene(index), np.random.default_rng(index))[:Q]

    def frames(self, index: int) -> np.ndarray:
        if self.split == "train":
            return draw(self.scene(index), T).frames
        with tempfile.TemporaryDirectory() as folder:
            write_clip(self.scene(index), Path(folder) / "clip.mp4")
            return read_video(Path(folder) / "clip.mp4", num_frames=T).frames

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 (T, 3, SIDE, SIDE), and numbers of words, int64 (Q, L)."""
        tokens = np.full((Q, L), PAD)
        for row, item in zip(tokens, self.questions(index)):
            words = words_of(item.question, item.answer if self.split == "train" else "")
            row[: len(words)] = [self.vocabulary[word] for word in words]
            if self.split == "train":
                row[len(words)] = END
        return to_pixels(self.frames(index)), tokens


# -- 2. Tokens and the model -------------------------------------------------------------------------------------------
class Eyes(nn.Module):
    """From pixels to visual tokens, without a pretrained encoder: four convolutions, each of which halves the picture.

    Each frame comes with its difference to the frame before, in which all that moves or appears stands out.
    """

    def __init__(self, features: int):
        super().__init__()
        widths = (6, 24, 48, 96, features)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.norm = nn.LayerNorm(features)
        self.place = nn.Parameter(torch.randn(V, features) * 0.02)  # tells a token its frame, row and column

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 (B, T, 3, SIDE, SIDE) -> (B, V, D)"""
        clips = pixels.float() / 128 - 1
        change = clips - torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
        x = torch.cat([clips, change], dim=2).flatten(0, 1)  # (B T, 6, SIDE, SIDE)
        for layer, norm in zip(self.layers, self.norms):
            x = F.gelu(norm(layer(x)))
        return self.norm(x.flatten(2).transpose(1, 2).reshape(len(pixels), V, -1)) + self.place


class Block(nn.Module):
    """A layer of a transformer: tokens tell each other what they know (attention), then each thinks alone (MLP)."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.query_key_value, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.mlp = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, N, D); mask: bool (N, N), true where the token of a row sees the token of a column."""
        parts = self.query_key_value(self.norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """Visual tokens, then words, in one row through one transformer, which predicts the next word at every word."""

    def __init__(self, num_words: int, features: int = 128, layers: int = 3, heads: int = 4):
        super().__init__()
        self.eyes = Eyes(features)
        self.words = nn.Embedding(num_words, features)
        nn.init.normal_(self.words.weight, std=0.02)
        self.order = nn.Parameter(torch.randn(L, features) * 0.02)  # tells a word its place in the question
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(features)
        # All visual tokens see each other. A word sees them and the words before it in its own question. So the Q
        # questions share the tokens of their clip, and each is answered as if it were alone.
        mask = torch.zeros(V + Q * L, V + Q * L, dtype=torch.bool)
        mask[:, :V] = True
        mask[V:, V:] = torch.block_diag(*[torch.ones(L, L).tril()] * Q).bool()
        self.register_buffer("mask", mask)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """pixels: uint8 (B, T, 3, SIDE, SIDE), tokens: (B, Q, L) -> logits of the next word, (B, Q, L, words)"""
        x = torch.cat([self.eyes(pixels), (self.words(tokens) + self.order).flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, self.mask)
        return (self.norm(x[:, V:]) @ self.words.weight.T).unflatten(1, (Q, L))


# -- 3. The loss -------------------------------------------------------------------------------------------------------
def answer_loss(logits: Tensor, tokens: Tensor, mark: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the words after the question mark, and the share of them that is the likeliest word."""
    wanted = tokens[..., 1:]
    after_mark = (tokens[..., :-1] == mark).cumsum(2) > 0
    told = after_mark & (wanted != PAD)
    found, wanted = logits[:, :, :-1][told], wanted[told]
    return F.cross_entropy(found, wanted), (found.argmax(1) == wanted).float().mean()


def train(model: Model, vocabulary: dict[str, int], steps: int, batch: int, peak: float) -> None:
    """`steps` batches of new clips; the learning rate rises to `peak` and falls along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    plan = {"total_steps": steps + 1, "pct_start": 0.1, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, **plan)
    clips = DataLoader(Clips("train", steps * batch, vocabulary), batch, num_workers=1, prefetch_factor=8)
    began, losses, rights = time.monotonic(), [], []
    for step, (pixels, tokens) in enumerate(clips, start=1):
        pixels[0] = 0  # one clip of a batch is black: the model also learns what to guess when it sees nothing
        loss, right = answer_loss(model(pixels, tokens), tokens, vocabulary["?"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        rights.append(right.item())
        if step % 50 == 0 or step == steps:
            minutes = (time.monotonic() - began) / 60
            recent = f"loss {np.mean(losses[-50:]):.3f}   words right {np.mean(rights[-50:]):.1%}"
            print(f"step {step} of {steps}   {recent}   {minutes / step * (steps - step):.1f} minutes left", flush=True)


# -- 4. A model that answers -------------------------------------------------------------------------------------------
@torch.inference_mode()
def answers(model: Model, pixels: Tensor, tokens: Tensor, vocabulary: dict[str, int]) -> list[list[str]]:
    """Answers of at most two words, (B, Q): the likeliest word is appended to the question, and read for the next one.

    pixels: uint8 (B, T, 3, SIDE, SIDE); tokens: (B, Q, L), questions up to their question mark.
    """
    names, tokens = list(vocabulary), tokens.clone()
    last = (tokens == vocabulary["?"]).int().argmax(2, keepdim=True)  # (B, Q, 1): the word at which the next is read
    said = []
    for _ in range(2):
        logits = model(pixels, tokens).gather(2, last[..., None].expand(-1, -1, 1, len(names)))
        said.append(logits.argmax(3))
        last = last + 1
        tokens.scatter_(2, last, said[-1])
    texts = torch.cat(said, dim=2).tolist()
    return [[" ".join(names[n] for n in row).split(" <end>")[0] for row in clip] for clip in texts]


def examine(model: Model, vocabulary: dict[str, int], num: int) -> list[tuple[Question, str, str]]:
    """All questions about unseen clips, with the model's answer, and its answer to black frames."""
    clips = Clips("test", num, vocabulary)
    asked, watched, blind = [clips.questions(index) for index in range(num)], [], []
    for pixels, tokens in DataLoader(clips, batch_size=20, num_workers=2):
        watched += answers(model, pixels, tokens, vocabulary)
        blind += answers(model, torch.zeros_like(pixels), tokens, vocabulary)
    return [row for clip in zip(asked, watched, blind) for row in zip(*clip)]


def scores(found: list[tuple[Question, str, str]]) -> dict[str, dict[str, float]]:
    """By family, and for all: how many questions, and the percentages of right answers."""
    truth = {name: [item.answer for item, _, _ in found if item.family == name] for name in FAMILIES}
    frequent = {name: Counter(values).most_common(1)[0][0] for name, values in truth.items() if values}
    table = {}
    for name in (*frequent, "all"):
        rows = [row for row in found if name in (row[0].family, "all")]
        right = {
            "right": [item.answer == said for item, said, _ in rows],
            "no_video": [item.answer == said for item, _, said in rows],
            "most_frequent_answer": [item.answer == frequent[item.family] for item, _, _ in rows],
        }
        table[name] = {"questions": len(rows)} | {way: round(100 * np.mean(of), 1) for way, of in right.items()}
    return table


def main() -> None:
    """Train, examine, show."""
    parser = argparse.ArgumentParser(description="A video-language model on one page.")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=16, help="clips in a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--clips", type=int, default=200, help="unseen clips at the end")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the other core draws
    began, vocabulary = time.monotonic(), make_vocabulary()
    model = Model(len(vocabulary))
    size = sum(weights.numel() for weights in model.parameters())
    print(f"{size:,} weights, {len(vocabulary)} words, {V} visual tokens for a clip")
    train(model, vocabulary, options.steps, options.batch_size, options.lr)
    found = examine(model, vocabulary, options.clips)
    for item, said, _ in found[:: max(1, len(found) // 12)]:
        print(f"{item.question}  {said}{'' if said == item.answer else f' (wrong: {item.answer})'}")
    table = scores(found)
    print(f"\n{'percent right':18}{'questions':>10}{'video':>8}{'no video':>10}{'most frequent answer':>22}")
    for name, row in table.items():
        print(f"{name:18}{row['questions']:10}{row['right']:8}{row['no_video']:10}{row['most_frequent_answer']:22}")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = {"wall": time.monotonic() - began, "cores": sum(part.ru_utime + part.ru_stime for part in used)}
    cost = {f"minutes_{name}": round(value / 60, 1) for name, value in seconds.items()}
    print(f"{cost['minutes_wall']} minutes, {cost['minutes_cores']} minutes of a core")
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        text = json.dumps({"settings": settings, **cost, "weights": size, "scores": table}, indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
