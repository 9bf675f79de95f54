"""Curves of a training run over steps: losses, accuracy on held-out clips, learning rate, gradients, throughput."""

import json
from pathlib import Path

# Title of each panel, and its curves: key in `metrics.jsonl` and label.
PANELS = {
    "loss": {"loss": "training", "validation_loss": "validation", "validation_loss_no_video": "without video"},
    "answers right": {"validation_accuracy": "validation", "validation_accuracy_no_video": "without video"},
    "attention of text to video": {"validation_attention_to_video": ""},
    "learning rate": {"learning_rate": ""},
    "gradient norm": {"grad_norm": ""},
    "rows per second": {"rows_per_second": ""},
}
_LINEAR = ("answers right", "attention of text to video", "learning rate")


def plot_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw `metrics.jsonl` as a PNG; panels without data are omitted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    panels = {
        name: {label: points for key, label in keys.items() if (points := points_of(rows, key))}
        for name, keys in PANELS.items()
    }
    panels = {name: curves for name, curves in panels.items() if curves}
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False, layout="constrained")
    for axis, (name, curves) in zip(axes[0], panels.items()):
        for label, points in curves.items():
            axis.plot(*zip(*points), linewidth=1.2, label=label)
        axis.set(xlabel="step", title=name)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize="small")
        if name not in _LINEAR:
            axis.set_yscale("log")
    figure.suptitle(title)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def points_of(rows: list[dict], key: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has the key."""
    return [(row["step"], row[key]) for row in rows if key in row]
