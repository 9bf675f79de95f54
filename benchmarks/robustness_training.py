"""Training, predicting and judging are killed at random moments and resumed: what comes out must be what an undisturbed
run gives, bit by bit. Then files of a complete checkpoint are damaged as a power loss would: the run must notice, fall
back to the checkpoint before, and still end with the same bits.

    python benchmarks/robustness_training.py --output benchmarks/robustness.json

Everything runs through the command line, in processes that are killed with SIGKILL; models are tiny. A kill counts as
*while saving* when it leaves a checkpoint folder that is not complete. The row is merged into the file as "training",
part by part.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "evaluation")]

import peft  # noqa: E402, F401 - before the forks
from judge_server import StandIn  # noqa: E402

from media import write_video  # noqa: E402
from tiny import tiny_model, tiny_processor  # noqa: E402
from videopanda.cli import app  # noqa: E402
from videopanda.evaluation.judging import run as _judging  # noqa: E402, F401 - before the forks
from videopanda.inference import answer as _answering  # noqa: E402, F401
from videopanda.training import run as _training  # noqa: E402, F401

STEPS = 8
TRAIN = ["max_steps=8", "save_steps=1", "batch_size=2", "num_frames=4", "log_steps=1", "num_workers=1", "validation=0"]
Command = list[str]


def started(command: Command, log: Path) -> int:
    """Run a command in a fork of this process, which has imported everything; returns its process id."""
    child = os.fork()
    if child:
        return child
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["videopanda", *command]
    code = 70
    try:
        app.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def finished(command: Command, log: Path) -> int:
    """Run a command to its end; returns its exit code."""
    _, status = os.waitpid(started(command, log), 0)
    return os.waitstatus_to_exitcode(status)


def killed(command: Command, log: Path, seconds: float) -> bool:
    """Run a command and kill it after some seconds; False where it had already ended."""
    child = started(command, log)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def trained(folder: Path) -> str:
    """What a run has computed: every loss and gradient norm, and the bytes of its weights."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return f"{steps} {weights}"


def content(file: Path) -> str:
    """The rows of a file of results, without the times that were measured."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k not in ("seconds", "date", "started")} for row in rows])


def disturb(
    kills: int, make: Callable[[Path, bool], Command], read: Callable[[Path], str], work: Path, rng: random.Random
) -> dict[str, int]:
    """Kill runs until enough kills have hit, resume each to its end, and compare with an undisturbed one."""
    log = work / "log.txt"
    for name in ("first", "whole"):  # the first one takes longer: it imports what is not in memory yet
        began = time.monotonic()
        assert finished(make(work / name, False), log) == 0, log.read_text()[-3000:]
    whole, longest = read(work / "whole"), time.monotonic() - began
    counts = {"kills": 0, "while_saving": 0, "runs": 0, "identical": 0}
    while counts["kills"] < kills:
        place = work / f"run{counts['runs']}"
        counts["runs"] += 1
        for attempt in range(5):
            if not killed(make(place, attempt > 0), log, rng.uniform(0.1, 1.0) * longest):
                break
            counts["kills"] += 1
            folders = list(place.glob("checkpoint-*")) if place.is_dir() else []
            counts["while_saving"] += any(not (folder / "complete").exists() for folder in folders)
        code = finished(make(place, True), log)
        counts["identical"] += code == 0 and read(place) == whole
        print(counts, flush=True)
    return counts


def power_loss(make: Callable[[Path, bool], Command], work: Path, rng: random.Random) -> dict[str, int]:
    """Damage single files of the newest checkpoint after it was declared complete."""
    log = work / "log.txt"
    assert finished(make(work / "whole", False), log) == 0
    whole, stopped = trained(work / "whole"), work / "stopped"
    child = started(make(stopped, False), log)
    while not (stopped / f"checkpoint-{STEPS - 3}" / "complete").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    newest = max(
        (path.parent for path in stopped.glob("checkpoint-*/complete")), key=lambda path: int(path.name.split("-")[1])
    )
    counts = {"files_cut": 0, "noticed": 0, "identical": 0}
    for file in sorted(path.relative_to(stopped) for path in newest.rglob("*") if path.is_file()):
        shutil.rmtree(work / "copy", ignore_errors=True)
        shutil.copytree(stopped, work / "copy")
        size = (work / "copy" / file).stat().st_size
        kept = rng.randrange(size)
        os.truncate(work / "copy" / file, kept)
        if rng.random() < 0.5:
            os.truncate(work / "copy" / file, size)  # the size is on the disk, the rest of the content is zeros
        (work / "said.txt").write_text("")
        code = finished(make(work / "copy", True), work / "said.txt")
        counts["files_cut"] += 1
        counts["noticed"] += "is damaged" in (work / "said.txt").read_text()
        counts["identical"] += code == 0 and trained(work / "copy") == whole
        print(file, counts, flush=True)
    return counts


def clips(folder: Path, count: int) -> Path:
    """Clips with a question each, in our own form."""
    rows = []
    for i in range(count):
        write_video(folder / f"{i}.mp4", range(9 * i, 9 * i + 9), fps=3)
        turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "yes " * (1 + i % 4)}]
        rows.append({"id": str(i), "video": f"{i}.mp4", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def main() -> None:
    """Run all parts and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "robustness.json")
    parser.add_argument("--train", type=int, default=15, help="kills; 0 leaves the part out")
    parser.add_argument("--train-lora", type=int, default=15)
    parser.add_argument("--predict", type=int, default=20)
    parser.add_argument("--judge", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    began, rng = time.monotonic(), random.Random(settings.seed)
    row: dict = {
        "command": "python benchmarks/robustness_training.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        work = Path(place)
        data = clips(work, 24)
        tiny_model("paper").save_pretrained(work / "model")
        tiny_processor("paper").save_pretrained(work / "model")

        def train(lora: bool) -> Callable[[Path, bool], Command]:
            common = ["finetune", "--data", str(data), "--model", str(work / "model"), *(["--lora"] if lora else [])]
            common += [part for setting in TRAIN for part in ("--set", setting)]
            return lambda folder, resume: [*common, "--output", str(folder)]

        def predict(folder: Path, _: bool) -> Command:
            bench = ["custom", str(data), "--model", str(work / "model"), "--num-frames", "4", "--batch-size", "1"]
            return [
                "evaluate",
                "predict",
                *bench,
                "--output",
                str(folder.with_suffix(".jsonl")),
                "--max-new-tokens",
                "8",
            ]

        def results(folder: Path) -> str:
            return content(folder.with_suffix(".jsonl"))

        for name, kills, make, read in (
            ("train", settings.train, train(lora=False), trained),
            ("train_lora", settings.train_lora, train(lora=True), trained),
            ("predict", settings.predict, predict, results),
        ):
            if not kills:
                continue
            (work / name).mkdir()
            row[name] = disturb(kills, make, read, work / name, rng)
            write(settings.output, row, began)
        questions = [{"video_name": f"c{i}", "question": f"what {i}?", "question_id": i} for i in range(40)]
        asked = work / "asked"
        asked.mkdir()
        (asked / "test_q.json").write_text(json.dumps(questions))
        (asked / "test_a.json").write_text(json.dumps([{"answer": "dog", "question_id": i} for i in range(40)]))
        replies = [json.dumps({"id": i, "pred": f"a dog {i}"}) for i in range(40)]
        (work / "p.jsonl").write_text("\n".join(replies) + "\n")

        def verdict(text: str, _: int) -> str:
            time.sleep(0.05)
            return json.dumps({"pred": "yes" if len(text) % 2 else "no", "score": len(text) % 6})

        (work / "judge").mkdir()
        with StandIn(verdict) as server:

            def judge(folder: Path, _: bool) -> Command:
                common = ["evaluate", "judge", "msvd-qa", str(asked), str(work / "p.jsonl"), "--concurrency", "2"]
                common += ["--name", "judge-2026-01-01", "--base-url", server.url]
                return [*common, "--output", str(folder.with_suffix(".jsonl"))]

            row["judge"] = disturb(settings.judge, judge, results, work / "judge", rng)
            write(settings.output, row, began)
        (work / "power").mkdir()
        row["power_loss"] = power_loss(train(lora=False), work / "power", rng)
        write(settings.output, row, began)
    print(json.dumps(row, indent=2))


def write(output: Path, row: dict, began: float) -> None:
    """Merge the row as it is now into the file."""
    row["seconds"] = round(time.monotonic() - began)
    found = json.loads(output.read_text()) if output.exists() else {}
    output.write_text(json.dumps({**found, "training": {**found.get("training", {}), **row}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
