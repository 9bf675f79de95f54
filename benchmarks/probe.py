"""What the tokens of encoder-free models say of real clips, as far as a linear map can read it: before distillation of
an image teacher, and after it.

    python benchmarks/probe.py clips/*.mp4 --teacher out/dinov2-s --output benchmarks/probe.json

Tokens come from the vision parts of the bundled models: with fresh weights, as trained on Scenes, and each of both
after a short distillation on two thirds of the clips (one linear map from every token to the teacher's features of its
cell, mean of 1 - cosine; the language model does not run). Ridge regression reads the teacher's features of each cell
from its token:

  r2, cosine    of centered features; 0 is what their mean alone gives
  unseen        clips that neither the distillation nor the regression has seen
  later         the last third of the clips whose first two thirds both learned from

Beside them the same from the pixels of the cells, which every model is given.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor

from videopanda.encoders.open import open_teacher
from videopanda.evaluation.provenance import versions
from videopanda.hub import folder_of
from videopanda.inference.load import load
from videopanda.models.families import model_class
from videopanda.models.frames import FrameProcessor
from videopanda.models.visual import CELL
from videopanda.training.guidance import WholeFrames
from videopanda.video.read import read_video

FRAMES, WINDOW, EARLY = 24, 4, 4  # frames of a clip, of them in one window; windows that the classifier learns from
SIDE = 10  # patches per side that the teacher sees
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # per row of the regression


def windows_of(path: Path) -> list[np.ndarray]:
    """The frames of a clip in windows (WINDOW, H, W, 3), no longer than 256 pixels per side."""
    frames = read_video(path, num_frames=FRAMES).frames
    scale = min(1.0, 256 / max(frames.shape[1:3]))
    small = FrameProcessor.resize(frames, *(round(scale * side) for side in frames.shape[1:3]))
    return [small[i : i + WINDOW] for i in range(0, len(small) - WINDOW + 1, WINDOW)]


# -- features of cells -------------------------------------------------------------------------------------------------
def cells_of(model: Any, processor: Any, window: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """Tokens of the cells of a window, (T, R, C, E), and R and C."""
    inputs = processor.video_processor(videos=[window], return_tensors="pt")
    (visual,) = model.encode(dict(inputs))
    is_cell = visual.layout[:, 3] == CELL
    rows, columns = (visual.layout[is_cell].amax(0) - visual.layout[is_cell].amin(0) + 1)[1:3].tolist()
    return visual.tokens[is_cell].view(len(window), rows, columns, -1), (rows, columns)


def taught(features_TGGD: Tensor, grid: tuple[int, int]) -> Tensor:
    """The teacher's features, averaged over each cell: (T, R, C, D)."""
    return F.adaptive_avg_pool2d(features_TGGD.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)


def pixels_of(window: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """8 × 8 pixels of each cell, (T, R, C, 192)."""
    rows, columns = grid
    small = torch.from_numpy(FrameProcessor.resize(window, 8 * rows, 8 * columns)).float() / 255
    return small.view(len(window), rows, 8, columns, 8, 3).permute(0, 1, 3, 2, 4, 5).flatten(3)


def distilled(model: Any, processor: Any, windows: list[np.ndarray], features: list[Tensor], steps: int) -> Any:
    """The model after some steps of 8 windows."""
    torch.manual_seed(0)
    head = nn.Linear(model.config.get_text_config().hidden_size, features[0].shape[-1])
    parts = [weight for part in model.vision_modules().values() for weight in part.parameters()]
    optimizer = torch.optim.AdamW([*parts, *head.parameters()], lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        losses = []
        for i in rng.choice(len(windows), 8, replace=False):
            tokens_TRCE, grid = cells_of(model, processor, windows[i])
            losses.append(1 - F.cosine_similarity(head(tokens_TRCE), taught(features[i], grid), dim=-1).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_([*parts, *head.parameters()], 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


# -- probes ------------------------------------------------------------------------------------------------------------
class Ridge:
    """Linear regression of standardized inputs, with its penalty chosen on every third of the groups."""

    def __init__(self, x: Tensor, y: Tensor, groups: Tensor):
        held = groups % 3 == 0
        errors = [self._fit(x[~held], y[~held], p).error(x[held], y[held]) for p in PENALTIES]
        self._fit(x, y, PENALTIES[int(np.argmin(errors))])

    def _fit(self, x: Tensor, y: Tensor, penalty: float) -> "Ridge":
        self.mean, self.std, self.center = x.mean(0), x.std(0) + 1e-6, y.mean(0)
        z = (x - self.mean) / self.std
        self.weight = torch.linalg.solve(z.T @ z + penalty * len(z) * torch.eye(z.shape[1]), z.T @ (y - self.center))
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Predict."""
        return (x - self.mean) / self.std @ self.weight + self.center

    def error(self, x: Tensor, y: Tensor) -> float:
        """Mean squared error of the predictions."""
        return F.mse_loss(self(x), y).item()


def probe(x: list[list[Tensor]], y: list[list[Tensor]], test: list[int]) -> dict[str, dict[str, float]]:
    """Both measures on unseen clips and later in seen ones.

    Args:
        x: features of every clip and window, (T, R, C, E).
        y: the teacher's, (T, R, C, D).
        test: numbers of the clips that are held out.
    """
    train = [i for i in range(len(x)) if i not in test]

    def rows(clips: list[int], part: slice) -> tuple[Tensor, Tensor]:
        features, targets = (torch.cat([w.flatten(0, 2) for i in clips for w in each[i][part]]) for each in (x, y))
        return features, targets

    groups = torch.cat([torch.full((len(rows([i], slice(EARLY))[0]),), place) for place, i in enumerate(train)])
    ridge, found = Ridge(*rows(train, slice(EARLY)), groups), {}
    for name, clips, part in (("unseen", test, slice(None)), ("later", train, slice(EARLY, None))):
        features, wanted = rows(clips, part)
        said, truth = ridge(features) - ridge.center, wanted - ridge.center
        r2 = 1 - (said - truth).square().sum() / truth.square().sum()
        cosine = F.cosine_similarity(said, truth, dim=-1).mean()
        found[name] = {"r2": round(r2.item(), 4), "cosine": round(cosine.item(), 4)}
    return found


def main() -> None:
    """Run all and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--steps", type=int, default=100, help="of the distillation")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    clips = [windows_of(path) for path in sorted(options.clips)]
    test = list(range(0, len(clips), 3))
    teacher = open_teacher(options.teacher, SIDE)
    seen = WholeFrames(teacher.image_size, teacher.mean, teacher.std)
    features = [
        [teacher({"teacher_pixels": seen.place([w])["pixel_values_videos"]})[0] for w in clip] for clip in clips
    ]
    train = [pair for i in range(len(clips)) if i not in test for pair in list(zip(clips[i], features[i]))[:EARLY]]
    print(f"{len(clips)} clips, {sum(map(len, clips))} windows; teacher: {time.process_time() - began:.0f} CPU s")
    rows = []

    def measure(name: str, state: str, of: Any) -> None:
        """Probe features (T, R, C, E), and the grid, of every window."""
        x, y = [], []
        with torch.no_grad():
            for windows, known in zip(clips, features):
                pairs = [of(window, feature) for window, feature in zip(windows, known)]
                x.append([cells for cells, _ in pairs])
                y.append([taught(feature, grid) for feature, (_, grid) in zip(known, pairs)])
            rows.append({"tokens": name, "state": state, **probe(x, y, test)})
        print(rows[-1], flush=True)

    for name in ("nano", "nano-elva"):
        folder = folder_of(name)
        config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        for state in ("fresh", "trained on Scenes"):
            torch.manual_seed(0)
            model: Any = model_class(config)(config).eval() if state == "fresh" else load(folder, device="cpu")[0]
            model = model.float()
            measure(name, state, lambda window, _, m=model, p=processor: cells_of(m, p, window))
            model = distilled(model, processor, *map(list, zip(*train)), options.steps)
            measure(name, f"{state}, distilled", lambda window, _, m=model, p=processor: cells_of(m, p, window))

        def grid_of(window: np.ndarray, m: Any = model, p: Any = processor) -> tuple[int, int]:
            return cells_of(m, p, window)[1]

        measure(name, "pixels of its cells", lambda window, _, g=grid_of: (pixels_of(window, g(window)), g(window)))

    found = {
        "what": __doc__.split("\n\n")[0].replace("\n", " "),
        "command": f"python benchmarks/probe.py CLIPS --teacher DIR --steps {options.steps}",
        "clips": len(clips), "held_out": len(test), "frames": sum(len(w) for clip in clips for w in clip),
        "teacher": {"width": teacher.size, "patches_per_side": SIDE}, "rows": rows,
        "cpu_seconds": round(time.process_time() - began), "date": date.today().isoformat(),
        "hardware": f"one thread, {platform.machine()}", "versions": versions(),
    }  # fmt: skip
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
