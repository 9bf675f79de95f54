"""The file of results of a table: one row per cell, added when its runs end.

    {"table": "table4", "title": "…",
     "tests": {"5f2a…": {"clips": […], "families": […]}},      per question of a test: number of its clip, its family
     "rows": [
       {"row": "full", "seed": 0, "budget": "small", "accuracy": 0.508, "families": {"colour": 0.58, …},
        "battery": {"no_video": 0.33, "one_frame": …, "shuffled": …, "reversed": …, "wrong_video": …,
                    "most_frequent_answer": …},
        "test": "5f2a…", "right": "0110…",                       per question, in the order of the test
        "cost": {"vision_parameters": …, "visual_tokens": …, "vision_gflops": …, "hours": …, "cpu_hours": …},
        "commands": ["videopanda train …", …], "runs": ["prealign-1a2b…", …], "model_sha256": "…",
        "experiment": {"pretrain": {"max_steps": 400, …}, …, "evaluate": {"questions": 120, "seed": 0}},
        "date": "2026-11-29", "machine": "…", "threads": 2, "versions": {…}}]}

Every row is one line of the file. `add_row` writes one for any evaluation of Scenes, not only for those of `lab run`.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoProcessor

from videopanda.evaluation.outputs import object_with, replace_file
from videopanda.plan.planner import Planner

if TYPE_CHECKING:
    from videopanda.lab.run import Cell
    from videopanda.lab.table import Table

_KIND = object_with("table", "tests", "rows")
FRAME_SIZE = 144, 192  # height and width of the clip whose tokens and FLOPs are counted


class ResultsFile:
    """Rows of one table. A row replaces an earlier one of the same row, seed and budget.

    Raises:
        ValueError: the file is something else, or belongs to another table.
    """

    def __init__(self, path: Path, table: "Table | None" = None):
        self.path = path
        if path.is_dir() or (path.exists() and not _KIND(path.read_bytes())):
            raise ValueError(f"{path} was not written by this command, `videopanda lab run`: choose another file")
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if table and self.content["table"] != table.name:
                raise ValueError(f"{path} has the results of table {self.content['table']}, not of {table.name}")
        elif table:
            self.content = {"table": table.name, "title": table.title, "source": table.source, "tests": {}, "rows": []}
        else:
            raise ValueError(f"no results at {path}: run  videopanda lab run TABLE --output {path}")

    def find(self, cell: "Cell", budget: str) -> dict[str, Any] | None:
        """The row of a cell, if it is there and of its runs."""
        wanted = cell.row, cell.seed, budget, [unit.folder.name for unit in cell.units]
        rows = self.content["rows"]
        return next((row for row in rows if (row["row"], row["seed"], row["budget"], row["runs"]) == wanted), None)

    def add(self, row: dict[str, Any], test: dict[str, list]) -> None:
        """Add a row to what the file has by now, and write it: other runs may add rows of the table meanwhile."""
        with _alone(self.path.parent):
            if self.path.exists():
                self.content = json.loads(self.path.read_text(encoding="utf-8"))
            key = ("row", "seed", "budget")
            rows = [old for old in self.content["rows"] if any(old[name] != row[name] for name in key)]
            self.content["tests"][row["test"]] = test
            self.content["rows"] = [*rows, row]
            head = {name: value for name, value in self.content.items() if name not in ("tests", "rows")}
            tests = ",\n".join(
                f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.content["tests"].items()
            )
            lines = ",\n".join(map(json.dumps, self.content["rows"]))
            text = f'{json.dumps(head)[:-1]},\n"tests": {{\n{tests}\n}},\n"rows": [\n{lines}\n]}}\n'
            replace_file(self.path, text, _KIND)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing results in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def measured(cell: "Cell", budget: str, file: ResultsFile) -> dict[str, Any]:
    """Add the row of a cell whose units are finished, and return it."""
    *_, trained, evaluated = units = cell.units
    costs = [unit.cost for unit in units]
    cost = {
        "hours": round(sum(cost["seconds"] for cost in costs) / 3600, 4),
        "cpu_hours": round(sum(cost["cpu_seconds"] for cost in costs) / 3600, 4),
    }
    key = {"row": cell.row, "seed": cell.seed, "budget": budget}
    commands, runs = [unit.command for unit in units], [unit.folder.name for unit in units]
    return add_row(file, key, trained.folder, evaluated.folder, cost, commands, cell.experiment, runs)


def add_row(
    file: ResultsFile,
    key: dict[str, Any],
    model: Path,
    evaluation: Path,
    cost: dict[str, float],
    commands: Sequence[str],
    experiment: dict[str, dict[str, Any]],
    runs: Sequence[str] = (),
) -> dict[str, Any]:
    """Add the row of an evaluation that `videopanda evaluate scenes --output` wrote, and return it.

    Args:
        key: "row", "seed" and "budget".
        model: folder of the model.
        cost: at least "hours"; size, tokens and FLOPs of the vision part are added.
        commands: that lead to the model, for those who repeat it.
        experiment: all settings that decide the numbers, see `Table.experiment`.
    """
    report = json.loads((evaluation / "report.json").read_text(encoding="utf-8"))
    scores = [json.loads(line) for line in (evaluation / "full.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((evaluation / "full.scores.summary.json").read_text(encoding="utf-8"))
    (metric,) = {name for score in scores for name in score["metrics"]}
    clips = {name: number for number, name in enumerate(dict.fromkeys(score["video"] for score in scores))}
    test = {"clips": [clips[score["video"]] for score in scores], "families": [score["types"][0] for score in scores]}
    row = {
        **key,
        "accuracy": report["accuracy"],
        "families": {name: part["accuracy"] for name, part in report["families"].items()},
        "battery": {
            **{name: part["accuracy"] for name, part in report["baselines"].items()},
            "most_frequent_answer": report["most_frequent_answer"]["accuracy"],
        },
        "test": summary["items_sha256"][:12],
        "right": "".join(str(int(score["metrics"][metric])) for score in scores),
        "cost": {**vision_cost(model), **cost},
        "commands": list(commands),
        "runs": list(runs),
        "experiment": experiment,
        "model_sha256": report["model"]["sha256"],
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": report["versions"],
    }
    file.add(row, test)
    return row


def vision_cost(model: Path) -> dict[str, float]:
    """Parameters of a model's vision part, and tokens and GFLOPs (2 per multiply-accumulate) of one clip."""
    config, processor = AutoConfig.from_pretrained(model), AutoProcessor.from_pretrained(model)
    frames = processor.video_processor.num_frames
    planner = Planner(config, processor.video_processor, torch.float32)
    plan = planner.plan(frames, *FRAME_SIZE)
    vision = planner.model.vision_modules().values()
    return {
        "vision_parameters": sum(p.numel() for part in vision for p in part.parameters()),
        "visual_tokens": plan.visual_tokens,
        "vision_gflops": round(plan.flops["vision"] / 1e9, 3),
        "prefill_gflops": round(plan.flops["prefill"] / 1e9, 3),
    }
