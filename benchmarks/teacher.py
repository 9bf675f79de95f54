"""Does a teacher help at nano scale? Prealign and pretrain on Scenes, with a distilled teacher and without.

    videopanda train language --config nano --output out/language      # once, ten minutes on two cores
    python benchmarks/teacher.py --language out/language --output benchmarks/teacher.json

1. A teacher of the LanguageBind shape (CLIP tower, attention over time in every layer) is trained here: clips of Scenes
   against their captions, contrastively (InfoNCE), with a small text tower that is dropped afterwards. Ridge regression
   says what its features know of each cell: the distillation can give the student no more than that.
2. For each seed, two arms from the same language model: `videopanda train prealign`, then `pretrain`, with the same
   steps, seeds and clips. Only `distill_weight` differs. The alignment with true words, which the bundled model has in
   the teacher's place, is off in both.
3. Unseen clips of the test split: loss on answers and the share of answers whose tokens are all right, teacher-forced.

What is finished is skipped, what was interrupted goes on. Curves are drawn beside the report.
"""

import argparse
import json
import platform
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videopanda.data.collate import IGNORE, Collator
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import TRAINING_THEMES, balanced, draw
from videopanda.data.worlds.scenes.questions import FAMILIES, make_questions
from videopanda.data.worlds.scenes.render import coverage
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SIZES, Difficulty, make_scene
from videopanda.encoders.open import open_teacher
from videopanda.evaluation.provenance import versions
from videopanda.inference.load import load
from videopanda.lab.teachers import FRAMES, PATCH, SIDE, pictures, train_teacher
from videopanda.training.run import train

ARMS = {"none": ["distill_weight=0"], "teacher": ["distill_weight=1"]}
DIFFICULTY = Difficulty(2, TRAINING_THEMES)  # one or two things at a time: what so few steps can learn


# -- the teacher -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def probe(folder: Path, clips: int = 512) -> dict[str, dict[str, float]]:
    """How often colour, shape and size of what a cell shows can be read off its feature by a linear map.

    Ridge regression on three quarters of the clips, measured on the rest, over cells that show a thing; beside it the
    most frequent value, and the same regression on the pixels of the cell.
    """
    scenes = [make_scene(1, "train", i, DIFFICULTY) for i in range(clips)]
    pixels, placements = pictures(scenes)
    features = open_teacher(str(folder), SIDE // PATCH)({"teacher_pixels": pixels})
    cells = pixels.float().unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH).permute(0, 1, 3, 4, 2, 5, 6).flatten(4)
    taken: dict[str, list] = defaultdict(list)
    for clip, scene in enumerate(scenes):
        top, left, rows, columns = placements[clip, :4].tolist()
        for frame, second in enumerate(draw(scene, FRAMES).timestamps):
            for (row, column), owner in np.ndenumerate(coverage(scene, second, rows, columns)):
                if owner >= 0:
                    thing, where = scene.things[owner], (clip, frame, top + row, left + column)
                    taken["words"].append((thing.colour_at(second), thing.shape, thing.size))
                    taken["features"].append(features[where])
                    taken["pixels"].append(cells[where])
                    taken["train"].append(clip < clips * 3 // 4)
    trained = torch.tensor(taken["train"])
    result: dict[str, dict[str, float]] = {}
    for i, (name, values) in enumerate({"colour": COLOURS, "shape": SHAPES, "size": SIZES}.items()):
        wanted = torch.tensor([list(values).index(words[i]) for words in taken["words"]])
        result[name] = {"most_frequent": round((wanted[~trained].bincount().max() / (~trained).sum()).item(), 4)}
        for source in ("pixels", "features"):
            x = torch.stack(taken[source]).double()
            x = F.pad((x - x[trained].mean(0)) / (x[trained].std(0) + 1e-6), (0, 1), value=1.0)
            a, y = x[trained], F.one_hot(wanted[trained], len(values)).double()
            weight = torch.linalg.solve(a.T @ a + 10.0 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ y)
            right = ((x[~trained] @ weight).argmax(1) == wanted[~trained]).double().mean()
            result[name][source] = round(right.item(), 4)
    return result


# -- the students ------------------------------------------------------------------------------------------------------
def run_arm(arm: str, seed: int, language: Path, work: Path, steps: dict[str, int], clips: int) -> dict:
    """Both stages of one arm, each measured on unseen clips; returns what `result.json` of its folder holds."""
    folder = work / f"{arm}-{seed}"
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    model, result = language, {}
    for number, (stage, count) in enumerate(steps.items()):
        began = time.perf_counter()
        settings = [
            *ARMS[arm], f"teacher={work / 'teacher'}", f"num_frames={FRAMES}", f"max_steps={count}",
            f"seed={10 * seed + number}", "text_weight=1", "align_weight=0", "scenes_max_things=2", "scenes_ramp=0",
            "batch_size=4", "compile=false", "num_workers=0", "log_steps=10", "save_steps=200",
        ]  # fmt: skip
        model = train(stage, "nano", settings, model, folder / stage, resume=True)
        rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
        names = ("text_loss", "distill_loss") if arm == "teacher" else ("text_loss",)
        curves = {name: [[row["step"], round(row[name], 4)] for row in rows if name in row] for name in names}
        result[stage] = {
            "seconds": round(time.perf_counter() - began, 1),
            "last_tenth": {name: round(mean(v for _, v in curve[-max(1, len(curve) // 10) :]), 4)
                           for name, curve in curves.items()},
            "unseen": measure(model, clips),
            "curves": curves,
        }  # fmt: skip
        print(arm, seed, stage, {k: v for k, v in result[stage].items() if k != "curves"}, flush=True)
    done.write_text(json.dumps(result))
    return result


def unseen(clips: int) -> list[tuple[Sample, list[str]]]:
    """Clips of the test split with their questions, and the family of each question."""
    found = []
    for index in range(clips):
        scene = make_scene(0, "test", index, DIFFICULTY)
        asked = balanced(make_questions(scene, np.random.default_rng([0, index])))
        turns = tuple(((q.question, q.answer),) for q in asked)
        found.append((Sample(str(index), (draw(scene, FRAMES),), turns), [q.family for q in asked]))
    return found


@torch.no_grad()
def measure(folder: Path, clips: int) -> dict:
    """Loss on the answers to unseen questions, and how many are right with every token given all before it."""
    model, processor = load(folder)
    model.eval()
    collator, samples = Collator(processor, max_length=2048), unseen(clips)
    right: dict[str, list[bool]] = defaultdict(list)
    losses: list[Tensor] = []
    for i in range(0, len(samples), 4):
        batch = collator([sample for sample, _ in samples[i : i + 4]])
        labels_BN = batch.pop("labels")[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits_BNW = model(**batch).logits[:, :-1].float()
        for labels_N, logits_NW, (_, families) in zip(labels_BN, logits_BNW, samples[i : i + 4], strict=True):
            at = (labels_N != IGNORE).nonzero().squeeze(1)
            losses.append(F.cross_entropy(logits_NW[at], labels_N[at], reduction="none"))
            hits = logits_NW[at].argmax(1) == labels_N[at]
            # Answers never touch: the next question lies between them.
            starts = [0, *((at.diff() > 1).nonzero().squeeze(1) + 1).tolist(), len(at)]
            for family, a, b in zip(families, starts[:-1], starts[1:], strict=True):
                right[family].append(bool(hits[a:b].all()))
    everything = [hit for hits in right.values() for hit in hits]
    return {
        "loss": round(torch.cat(losses).mean().item(), 4),
        "accuracy": round(mean(everything), 4),
        "families": {family: round(mean(right[family]), 4) for family in FAMILIES if right[family]},
    }


def floor(clips: int) -> dict:
    """How many questions there are, and what the most frequent answer of each family would score."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for sample, families in unseen(clips):
        for family, ((_, answer),) in zip(families, sample.conversations):
            answers[family][answer] += 1
    total = sum(counter.total() for counter in answers.values())
    best = {family: counter.most_common(1)[0][1] for family, counter in answers.items()}
    return {
        "questions": total,
        "accuracy": round(sum(best.values()) / total, 4),
        "families": {f: round(best[f] / answers[f].total(), 4) for f in FAMILIES if f in best},
    }


# -- the report --------------------------------------------------------------------------------------------------------
def summary(runs: dict[str, dict[str, dict]], stages: list[str]) -> dict:
    """Mean and spread over seeds, and the differences within seeds, of what was measured on unseen clips."""
    found: dict = {}
    for stage in stages:
        for key in ("loss", "accuracy"):
            values = {arm: [run[stage]["unseen"][key] for run in by_seed.values()] for arm, by_seed in runs.items()}
            gains = [b - a for a, b in zip(values["none"], values["teacher"], strict=True)]
            found[f"{stage} {key}"] = {
                **{arm: {"mean": round(mean(v), 4), "sd": round(stdev(v), 4) if len(v) > 1 else None, "seeds": v}
                   for arm, v in values.items()},
                "teacher minus none": [round(gain, 4) for gain in gains],
            }  # fmt: skip
    return found


def plot(runs: dict[str, dict[str, dict]], stages: list[str], least: float, picture: Path) -> None:
    """Loss on answers over the steps, and accuracy on unseen questions after each stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(stages) + 1, figsize=(4.5 * (len(stages) + 1), 3.4), layout="constrained")
    for axis, stage in zip(axes, stages):
        for colour, (arm, by_seed) in zip(("tab:grey", "tab:blue"), runs.items()):
            curves = np.array([run[stage]["curves"]["text_loss"] for run in by_seed.values()])  # (seeds, points, 2)
            steps, values = curves[0, :, 0], curves[:, :, 1]
            axis.plot(steps, values.mean(0), color=colour, label=arm, linewidth=1.2)
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2)
        axis.set(xlabel="step", title=f"{stage}: loss on answers")
        axis.grid(alpha=0.3)
        axis.legend()
    for i, stage in enumerate(stages):
        for shift, colour, (arm, by_seed) in zip((-0.1, 0.1), ("tab:grey", "tab:blue"), runs.items()):
            values = [100 * run[stage]["unseen"]["accuracy"] for run in by_seed.values()]
            axes[-1].scatter([i + shift] * len(values), values, color=colour, label=arm if i == 0 else None)
    axes[-1].axhline(100 * least, color="black", linestyle=":", linewidth=1, label="most frequent answer")
    axes[-1].set(title="unseen questions right, %", xticks=range(len(stages)), xticklabels=stages, xlim=(-0.5, 1.5))
    axes[-1].grid(alpha=0.3)
    axes[-1].legend()
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Train what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", type=Path, default=Path("out/language"), help="result of the stage `language`")
    parser.add_argument("--work", type=Path, default=Path("out/teacher-study"), help="folder of all runs")
    parser.add_argument("--output", type=Path, required=True, help="report; the picture is put beside it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prealign", type=int, default=300, help="steps of 4 clips")
    parser.add_argument("--pretrain", type=int, default=1200, help="steps of 4 clips")
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--teacher-batch", type=int, default=64)
    parser.add_argument("--teacher-clips", type=int, default=4096)
    parser.add_argument("--clips", type=int, default=100, help="unseen clips to ask about")
    given = parser.parse_args()
    if not (given.work / "teacher" / "training.json").exists():
        folder, size = given.work / "teacher", (given.teacher_steps, given.teacher_batch, given.teacher_clips)
        train_teacher("video-text", given.language, folder, *size, max_things=DIFFICULTY.max_things)
        record = folder / "training.json"
        known = {**json.loads(record.read_text()), "what_its_cells_tell": probe(folder)}
        record.write_text(json.dumps(known, indent=2) + "\n")
    steps = {"prealign": given.prealign, "pretrain": given.pretrain}
    runs: dict[str, dict[str, dict]] = {arm: {} for arm in ARMS}
    for seed in range(1, given.seeds + 1):
        for arm in ARMS:
            runs[arm][str(seed)] = run_arm(arm, seed, given.language, given.work, steps, given.clips)
    least = floor(given.clips)
    report = {
        "command": "python benchmarks/teacher.py --language out/language --output benchmarks/teacher.json",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), **versions()},
        "teacher": json.loads((given.work / "teacher" / "training.json").read_text()),
        "steps": steps,
        "rows_per_step": 4,
        "frames": FRAMES,
        "most_frequent_answer": least,
        "summary": summary(runs, list(steps)),
        "runs": runs,
    }
    text = json.dumps(report, indent=1)
    given.output.write_text(text + "\n", encoding="utf-8")
    plot(runs, list(steps), least["accuracy"], given.output.with_suffix(".png"))
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
