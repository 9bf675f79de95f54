"""Curves of a training run: loss, learning rate, gradient norm and throughput over steps."""

import json
from pathlib import Path

PANELS = (
    ("loss", "loss"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("rows_per_second", "rows per second"),
)


def plot_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw `metrics.jsonl` as a PNG; panels without data are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    panels = [(key, label) for key, label in PANELS if any(key in row for row in rows)]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False, layout="constrained")
    for axis, (key, label) in zip(axes[0], panels):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points), linewidth=1.2)
        axis.set(xlabel="step", title=label)
        axis.grid(alpha=0.3)
        if key != "learning_rate":
            axis.set_yscale("log")
    figure.suptitle(title)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
