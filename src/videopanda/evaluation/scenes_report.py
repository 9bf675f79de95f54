"""Accuracy on unseen test scenes, with baselines that show whether a model uses the video at all.

    report = scenes_report(Path("out/scenes"), load(None), num=2000)    # or: videopanda evaluate scenes --num 2000
    report["accuracy"], report["families"]["speed"]["accuracy"], report["baselines"]["no_video"]["accuracy"]

Scenes is a benchmark like any other: the folder gets clips, annotations, and for each condition predictions and scores,
from which this report is made. Every clip is an H.264 file that is read as a user's would be; every prompt has one
question; clips that cannot be read count as wrong and are listed.
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from videopanda.data.worlds.scenes.questions import FAMILIES
from videopanda.data.worlds.scenes.selection import AS_WRITTEN, TEST, make_test_set
from videopanda.data.worlds.scenes.wordings import DECLINE
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.outputs import check_replaceable, object_with, replace_file
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.scoring.score import read_all, score_file
from videopanda.inference.load import BUNDLED_MODEL

MAX_NEW_TOKENS = 16  # the longest right answer is two words,
MAX_NEW_TOKENS_IN_WORDINGS = 32  # or a sentence where one is asked for
BATCH_SIZE = 32
SCORER = "normalized"
_REPORT = object_with("num_questions", "families")
_SAMPLING = {"uniform": "uniform in time, the frame at the middle of each segment"}


def scenes_report(
    folder: Path,
    loaded: tuple[Any, Any],
    model: Path | None = None,
    num: int = 2000,
    seed: int = 0,
    baselines: bool = True,
    workers: int | None = None,
    progress: bool = True,
    media_root: Path | None = None,
    wordings: str = AS_WRITTEN,
) -> dict[str, Any]:
    """Ask `num` questions about test scenes and score the answers.

    Args:
        folder: for predictions, scores and `report.json`; an interrupted run is resumed.
        loaded: the model and its processor.
        model: their folder; None is the bundled model.
        num: number of questions, spread evenly over the twelve families.
        seed: chooses the scenes.
        baselines: ask again under the other conditions (`evaluation.conditions`).
        workers: processes that write clips; default one per CPU. With more than one, a script must call this under
            `if __name__ == "__main__":`.
        progress: show a bar on stderr while clips are written.
        media_root: folder of clips and annotations, which several evaluations may share; default `folder`.
        wordings: of the questions: "written", "held-out" or a file (`data.worlds.scenes.selection`).

    Returns:
        The report; `table` prints it. Intervals treat questions as independent, although some share a clip.

    Raises:
        ValueError: fewer questions than families, or the folder holds the predictions of another run.
    """
    began = time.perf_counter()
    check_replaceable(folder / "report.json", _REPORT)
    test = media_root or folder
    make_test_set(test, num, seed, workers, progress, wordings)
    longest = MAX_NEW_TOKENS if wordings == AS_WRITTEN else MAX_NEW_TOKENS_IN_WORDINGS
    summaries = {}
    for condition in CONDITIONS if baselines else CONDITIONS[:1]:
        job = PredictJob(
            "scenes", test, test, model, condition, batch_size=BATCH_SIZE, max_new_tokens=longest, seed=seed
        )
        predictions = folder / f"{condition}.jsonl"
        predict(job, predictions, loaded=loaded)
        summaries[condition] = score_file("scenes", test, predictions, folder / f"{condition}.scores.jsonl", SCORER)
    full, (answers, _) = summaries.pop("full"), read_all(folder / "full.jsonl")
    unread = {answer.id.rpartition("/")[0]: answer.reason for answer in answers if answer.failure}  # by clip
    items = load("scenes", test).items
    (entry,) = full["protocols"]
    protocol = entry["protocol"]
    report = {
        **_part(full["metrics"]["accuracy"], full["questions"]),
        "families": _families(full),
        "baselines": {
            name: {"accuracy": round(summary["metrics"]["accuracy"], 4), "families": _families(summary)}
            for name, summary in summaries.items()
        },
        "most_frequent_answer": _most_frequent_answers(items),
        "num_questions": num,
        "num_clips": len({item.video for item in items}),
        # The share of answers that decline, though every question can be answered.
        "declined": round(sum(answer.prediction == DECLINE for answer in answers) / len(answers), 4),
        "failures": [{"id": clip, "reason": reason} for clip, reason in unread.items()],
        "wordings": Path(wordings).name,
        "seed": seed,
        "model": {
            "path": str(model or BUNDLED_MODEL),
            "sha256": protocol["model_sha256"],
            "settings": protocol["settings"],
        },
        "protocol": {
            "split": TEST,
            "frames": protocol["num_frames"],
            "sampling": _SAMPLING.get(protocol["sampling"], protocol["sampling"]),
            "decoder": ", ".join(full["decoders"]),
            "generation": {"decoding": "greedy", "max_new_tokens": longest, "questions_per_prompt": 1},
            "scoring": f"equal in normal form (scorer {SCORER})",
        },
        "versions": protocol["versions"],
        "seconds": round(time.perf_counter() - began, 1),
    }
    del report["n"]
    replace_file(folder / "report.json", json.dumps(report, indent=2) + "\n", _REPORT)
    return report


def _part(accuracy: float, questions: int) -> dict[str, Any]:
    interval = [round(v, 4) for v in wilson(round(accuracy * questions), questions)]
    return {"accuracy": round(accuracy, 4), "n": questions, "ci95": interval}


def _families(summary: dict[str, Any]) -> dict[str, Any]:
    types = summary["types"]
    return {family: _part(types[family]["metrics"]["accuracy"], types[family]["questions"]) for family in FAMILIES}


def _most_frequent_answers(items: Sequence[Item]) -> dict[str, Any]:
    """What the best constant answer per family would score: the floor for a model that knows only the families."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        answers[item.types[0]][item.answers[0]] += 1
    best = {family: answers[family].most_common(1)[0] for family in FAMILIES}
    return {
        "accuracy": round(sum(n for _, n in best.values()) / len(items), 4),
        "families": {
            family: {"answer": answer, "accuracy": round(n / answers[family].total(), 4)}
            for family, (answer, n) in best.items()
        },
    }


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share, z2 = correct / total, z * z / total
    center = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return max(0.0, center - half), min(1.0, center + half)


def table(report: dict[str, Any]) -> Table:
    """The report for people, in percent: one line per family, 80 columns wide."""
    baselines, floor = report["baselines"], report["most_frequent_answer"]
    title = f"Scenes: {report['num_questions']} questions about {report['num_clips']} clips, percent right"
    caption = "const: always the most frequent answer of the family"
    grid = Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    headers = [name.replace("_", "\n") for name in baselines]
    for name in ("family", "n", "accuracy", "95 %", *headers, "const"):
        grid.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)

    def add(name: str, part: dict[str, Any], others: Sequence[float], last: bool = False) -> None:
        low, high = part["ci95"]
        values = (f"{100 * value:.1f}" for value in (part["accuracy"], *others))
        accuracy, *rest = values
        grid.add_row(name, str(part["n"]), accuracy, f"{100 * low:.0f}–{100 * high:.0f}", *rest, end_section=last)

    for name, part in report["families"].items():
        others = [baseline["families"][name]["accuracy"] for baseline in baselines.values()]
        add(name, part, [*others, floor["families"][name]["accuracy"]], last=name == FAMILIES[-1])
    overall = {"n": report["num_questions"], "accuracy": report["accuracy"], "ci95": report["ci95"]}
    add("all", overall, [*(baseline["accuracy"] for baseline in baselines.values()), floor["accuracy"]])
    return grid
