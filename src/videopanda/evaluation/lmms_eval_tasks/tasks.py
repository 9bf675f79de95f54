"""Functions named in the task files: our readers as a data set, our scorers as metric. Only lmms-eval imports this."""

from pathlib import Path
from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask

from videopanda.evaluation.benchmarks.item import Item, Task
from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.benchmarks.videos import Videos
from videopanda.evaluation.scoring.scorers import DEFAULTS, scorer


class ZeroShotQA(ConfigurableMessagesTask):
    """A benchmark of ours, `dataset_path`, read from the folders that `dataset_kwargs` names."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotations; nothing is downloaded. A question whose video is missing stays, and will be wrong."""
        given = dataset_kwargs or {}
        videos = Videos(Path(given["videos"]))
        rows = [
            {
                "id": item.id,
                "video": str(videos.find(item.video) or Path(given["videos"], item.video)),
                "question": item.question,
                "answer": item.answers[0],
                "task": item.task,
                "type": "/".join(item.types),
            }
            for item in load(self.config.dataset_path, given["annotations"]).items
            if item.task in ("short_answer", "yes_no")
        ]
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
        self.dataset_no_image = self.dataset


def to_visual(doc: dict[str, Any]) -> list[str]:
    """The path of the video."""
    return [doc["video"]]


def to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question unchanged, as in the zero-shot protocol."""
    return str(doc["question"])


def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn: the video and the question."""
    content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": to_text(doc)}]
    return [{"role": "user", "content": content}]


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Accuracy by the default scorer of the kind of question; an unreadable reply is wrong."""
    task: Task = "yes_no" if doc["task"] == "yes_no" else "short_answer"
    item = Item(doc["id"], doc["video"], doc["question"], task, answers=(doc["answer"],))
    verdict = scorer(DEFAULTS[task]).judge(item, results[0])
    return {"accuracy": verdict.metrics["accuracy"] if verdict else 0.0}
