"""A video-language model on one page: pixels → tokens → loss → a model that answers.

    python examples/one_page.py                       # docs/tutorials/one_page.md has the time and the accuracy
    python examples/one_page.py --steps 20 --clips 8  # a quick test that it runs

The world is Scenes: clips of one or two shapes, made by this package, with true answers to questions about colour,
shape, direction of motion and order of appearance. One process draws, another trains, and no clip is seen twice.
The model first learns to see, from pictures with captions that name what is there ("small red circle still"), but not
where: some token of the picture must resemble the words of that name more than those of any other. Then it learns to
answer, from clips whose captions tell what moves or appears, with questions: it predicts the next word after the
question mark. Then it answers questions about unseen clips in H.264 files, next to two baselines that do not look.

In shapes of tensors: B clips, T frames, C visual tokens of a frame, V = T C, K kinds of things, Q questions about a
clip, L words of a question with its answer, N = V + Q L tokens in a row, D features of a token.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from itertools import chain, pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from videopanda import read_video
from videopanda.data.worlds.scenes.dataset import draw
from videopanda.data.worlds.scenes.questions import Question, frame_times, make_questions
from videopanda.data.worlds.scenes.render import write_clip
from videopanda.data.worlds.scenes.world import COLOURS, DIRECTIONS, SHAPES, SIZES, Difficulty, Scene, make_scene

FAMILIES = ("motion_direction", "appearance_order", "colour", "shape")
WORLD = Difficulty(max_things=2, themes=("still", "move", "order"))
B, PEAK = 8, 2e-3  # clips in a step, highest learning rate
T, SIDE = 8, 48  # frames of a clip, pixels along each side
C, V, Q, L = (SIDE // 16) ** 2, T * (SIDE // 16) ** 2, 4, 15


# -- 1. Pixels and words -----------------------------------------------------------------------------------------------
def questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Those of our families, in random order."""
    return [question for question in make_questions(scene, rng) if question.family in FAMILIES]


def words_of(question: str, answer: str = "") -> list[str]:
    """Words in a row. The question ends with the word "?", and the answer follows."""
    asked = [*question.lower().rstrip("?").replace(",", " ,").split(), "?"]
    return [*asked, *answer.split(), "<end>"] if answer else asked


def named_in(scene: Scene, num_frames: int) -> list[set[str]]:
    """What captions of the frames name: what is there, what it does, "small red circle left"."""
    times, named = frame_times(scene.duration, num_frames), [set[str]() for _ in range(num_frames)]
    for (frame, second), it in product(enumerate(times), scene.things):
        does = "still" if not frame else it.heading or "still" if it.visible(times[frame - 1]) else "appears"
        named[frame] |= {f"{it.size} {it.colour} {it.shape} {does}"} if it.visible(second) else set()
    return named


def learn_words() -> tuple[list[str], list[str]]:
    """All names that captions may give, and all words of these and of the questions about a thousand clips."""
    kinds = [" ".join(kind) for kind in product(SIZES, COLOURS, SHAPES, ("still", "appears", *DIRECTIONS))]
    asked = chain(*(questions_about(make_scene(0, "train", i, WORLD), np.random.default_rng(i)) for i in range(1000)))
    words = {*" ".join(kinds).split()}.union(*[words_of(item.question, item.answer) for item in asked])
    return ["<pad>", *sorted(words)], kinds


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Frames of any size, uint8 (T, height, width, 3), as small squares, uint8 (T, 3, SIDE, SIDE)."""
    small = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(frame) for frame in small]).transpose(0, 3, 1, 2)


def to_numbers(texts: list[list[str]], rows: int, words: list[str]) -> np.ndarray:
    """Each word as its number in `words`, a text in a row, int64 (rows, L). The rest is 0, the number of "<pad>"."""
    numbers = np.zeros((rows, L), dtype=np.int64)
    for row, text in zip(numbers, texts):
        row[: len(text)] = [words.index(word) for word in text]
    return numbers


class Lessons(Dataset):
    """Drawn clips with their captions, and with questions and answers. A picture is a clip of one frame."""

    def __init__(self, indices: range, num_frames: int, words: list[str], kinds: list[str]):
        self.indices, self.num_frames, self.words, self.kinds = indices, num_frames, words, kinds

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, uint8 (T, 3, SIDE, SIDE); which kinds each frame shows, bool (T, K); numbers of words, (Q, L)."""
        scene = make_scene(0, "train", self.indices[item], WORLD)
        shown = np.array([[kind in named for kind in self.kinds] for named in named_in(scene, self.num_frames)])
        rng = np.random.default_rng(scene.index)
        asked = questions_about(scene, rng) + questions_about(scene, rng)  # the second time perhaps in other words
        asked.sort(key=lambda question: question.family in ("colour", "shape"))  # the rare families first
        tokens = to_numbers([words_of(item.question, item.answer) for item in asked[:Q]], Q, self.words)
        return to_pixels(draw(scene, self.num_frames).frames), shown, tokens


# -- 2. Tokens and the model -------------------------------------------------------------------------------------------
class Eyes(nn.Module):
    """From pixels to visual tokens, without a pretrained encoder: convolutions that halve the picture, or add to it."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=1 if a == b else 2, padding=1), nn.GroupNorm(8, b), nn.GELU())
            for a, b in pairwise((6, 24, 48, 48, 96, 96, 96, features))
        )
        self.norm = nn.LayerNorm(features)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 (B, T, 3, SIDE, SIDE) -> (B, V, D)"""
        clips = pixels.float() / 128 - 1
        change = clips - torch.cat([clips[:, :1], clips[:, :-1]], dim=1)  # in which what moves or appears stands out
        x = torch.cat([clips, change], dim=2).flatten(0, 1)  # (B T, 6, SIDE, SIDE)
        for layer in self.layers:
            y = layer(x)
            x = x + y if x.shape == y.shape else y
        return self.norm(x.flatten(2).transpose(1, 2).unflatten(0, pixels.shape[:2]).flatten(1, 2))


class Block(nn.Module):
    """A layer of a transformer: tokens exchange information (attention), then each is transformed alone (MLP).

    Attention begins as a search for what is alike (query = key) that copies what it finds (`out` = transposed value).
    """

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.query_key_value, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.mlp = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
        with torch.no_grad():
            query, key, value = self.query_key_value.weight.chunk(3)
            key.copy_(query.mul_(1.4))
            self.out.weight.copy_(value.T)

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
        self.cell = nn.Parameter(torch.randn(C, features) * 0.5)  # tells a visual token its row and column
        self.frame = nn.Parameter(torch.linspace(-0.5, 0.5, T)[:, None, None] * torch.randn(features))  # and its time
        self.order = nn.Parameter(torch.randn(L, features) * 0.02)  # tells a word its place in the question
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(features)

    def forward(self, seen: Tensor, tokens: Tensor) -> Tensor:
        """seen: visual tokens, (B, V, D); tokens: words, (B, Q, L) -> logits of the next word, (B, Q, L, words)"""
        # All visual tokens see each other. A word sees them and the words before it in its own question. So the Q
        # questions share the tokens of their clip, and each is answered as if it were alone.
        length = V + tokens[0].numel()
        mask = torch.zeros(length, length, dtype=torch.bool)
        mask[:, :V] = True
        mask[V:, V:] = torch.block_diag(*[torch.ones(L, L).tril()] * tokens.shape[1])
        said = self.words(tokens)
        said = said + said.cumsum(2) + self.order  # each word with all words before it, so that "?" knows what is asked
        x = torch.cat([seen + (self.frame + self.cell).flatten(0, 1), said.flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        return (self.norm(x[:, V:]) @ self.words.weight.T).unflatten(1, tokens.shape[1:])


# -- 3. The loss -------------------------------------------------------------------------------------------------------
def seeing_loss(seen: Tensor, names: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the kinds that each frame shows, and the share of them that outweighs all others.

    seen: visual tokens, (B, V, D); names: the embedded words of each kind, (K, 4, D); shown: bool (B, T, K).
    """
    kinds = F.normalize(F.normalize(names, dim=2).sum(1), dim=1)
    fit = F.normalize(seen, dim=2) @ kinds.T / 0.1  # (B, V, K): cosines, sharpened
    fit = fit.unflatten(1, (-1, C)).logsumexp(2)  # (B, T, K): a frame fits as well as its best token
    others = fit.masked_fill(shown, -torch.inf).logsumexp(2, keepdim=True).expand_as(fit)[shown]
    return F.softplus(others - fit[shown]).mean(), (fit[shown] > others).float().mean()


def answer_loss(logits: Tensor, tokens: Tensor, mark: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the words after the question mark, and the share of them that is the likeliest word."""
    wanted = tokens[..., 1:]
    told = ((tokens[..., :-1] == mark).cumsum(2) > 0) & (wanted != 0)
    found, wanted = logits[:, :, :-1][told], wanted[told]
    return F.cross_entropy(found, wanted), (found.argmax(1) == wanted).float().mean()


def train(model: Model, words: list[str], kinds: list[str], steps: int) -> None:
    """A third of the steps on pictures, the others on clips; a step takes as many frames of either."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.02)
    early = steps // 3
    pictures = Lessons(range(early * B * T), 1, words, kinds)
    clips = Lessons(range(len(pictures), len(pictures) + (steps - early) * B), T, words, kinds)
    loaders = [DataLoader(lessons, size, num_workers=1) for lessons, size in ((pictures, B * T), (clips, B))]
    names = torch.tensor([[words.index(word) for word in kind.split()] for kind in kinds])
    for step, (pixels, shown, tokens) in enumerate(chain(*loaders), start=1):
        optimizer.param_groups[0]["lr"] = PEAK * min(1, step / 50, 3 * (1 - step / (steps + 1)))
        pixels[0], shown[0] = 0, False  # one of a batch is black, to learn what to guess when nothing is seen
        seen = model.eyes(pixels)
        loss, right = seeing_loss(seen, model.words(names), shown)
        if step > early:
            told, right = answer_loss(model(seen, tokens), tokens, words.index("?"))
            loss = loss + told
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}   loss {loss:.2f}   right {right:.0%}", flush=True)


# -- 4. A model that answers -------------------------------------------------------------------------------------------
@torch.inference_mode()
def answers(model: Model, pixels: Tensor, asked: list[Question], words: list[str]) -> list[str]:
    """At most two words about a clip, uint8 (T, 3, SIDE, SIDE): the likeliest is appended, and read for the next."""
    seen, texts = model.eyes(pixels[None]), [words_of(item.question) for item in asked]
    for _ in range(2):
        tokens = torch.tensor(to_numbers(texts, len(texts), words))
        for text, logits in zip(texts, model(seen, tokens[None])[0]):
            text.append(words[int(logits[len(text) - 1].argmax())])
    return [" ".join(text[text.index("?") + 1 :]).split(" <end>")[0] for text in texts]


def examine(model: Model, words: list[str], num: int) -> list[tuple[Question, str, str]]:
    """All questions about clips of the split "test", with the model's answer, and its answer to black frames."""
    found: list[tuple[Question, str, str]] = []
    for index in range(num):
        scene = make_scene(0, "test", index, WORLD)
        with tempfile.TemporaryDirectory() as folder:
            write_clip(scene, Path(folder) / "clip.mp4")
            pixels = torch.tensor(to_pixels(read_video(Path(folder) / "clip.mp4", num_frames=T).frames))
        asked = questions_about(scene, np.random.default_rng(index))
        found += zip(asked, *(answers(model, frames, asked, words) for frames in (pixels, torch.zeros_like(pixels))))
    return found


def scores(found: list[tuple[Question, str, str]]) -> dict[str, dict[str, float]]:
    """By family, and for all: how many questions, and the percentages of right answers."""
    asked = Counter((item.family, item.answer) for item, _, _ in found)
    frequent = {family: answer for (family, answer), _ in reversed(asked.most_common())}
    table = {}
    for name in (*frequent, "all"):
        rows = [row for row in found if name in (row[0].family, "all")]
        right = [[item.answer == way for way in (*said, frequent[item.family])] for item, *said in rows]
        percent = (100 * np.mean(right, axis=0)).round(1).tolist()
        table[name] = {"questions": len(rows), **dict(zip(("right", "no_video", "most_frequent_answer"), percent))}
    return table


def main() -> None:
    """Train, test, show."""
    parser = argparse.ArgumentParser(description="A video-language model on one page.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=200, help="unseen clips at the end")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the other core draws
    began, (words, kinds) = time.monotonic(), learn_words()
    model = Model(len(words))
    print(f"{sum(weights.numel() for weights in model.parameters()):,} weights, {len(words)} words")
    train(model, words, kinds, options.steps)
    found = examine(model, words, options.clips)
    for item, said, _ in found[:: max(1, len(found) // 12)]:
        print(f"{item.question}  {said}{'' if said == item.answer else f' (wrong: {item.answer})'}")
    table = scores(found)
    print(f"\n{'percent right':18}{'questions':>10}{'video':>8}{'no video':>10}{'most frequent answer':>22}")
    for name, row in table.items():
        print(f"{name:18}{row['questions']:10}{row['right']:8}{row['no_video']:10}{row['most_frequent_answer']:22}")
    minutes = [(time.monotonic() - began) / 60, sum(os.times()[:4]) / 60]  # of the clock; of cores, workers included
    report = vars(options) | dict(zip(("minutes_wall", "minutes_cores"), np.round(minutes, 1).tolist()), scores=table)
    print(f"{report['minutes_wall']} minutes, {report['minutes_cores']} minutes of a core")
    if options.output:
        options.output.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
