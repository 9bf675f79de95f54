"""Runs a table: a cell is training stages and one evaluation, each a `videopanda` command with its own folder.

    run(read("table4"), "small", Path("out/lab"), Path("table4.json"), seeds=3, jobs=2)

A folder is named by a digest of everything that its result depends on, so cells with equal first stages share them, and
a run that was interrupted, killed or extended continues where it was. A row is added to the file of results as soon as
its cell is finished.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from videopanda.data.manifest import file_sha256
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.lab.check import check
from videopanda.lab.results import ResultsFile, measured
from videopanda.lab.table import QUESTIONS_SEED, TOWERS, Table
from videopanda.training.stages import make_config

COST_FILE = "lab.json"  # in the folder of a unit: seconds that it took, of all its sessions
LOG_FILE = "lab.log"  # output of its command
_STOPPED = 75  # exit code of a training that stopped at a signal after a checkpoint


class LabStoppedError(Exception):
    """The run was stopped; it can be continued."""


@dataclass(frozen=True)
class LabCommand:
    """One command, and the folder that it fills.

    kind: stage, "evaluate" or "teacher".
    work: steps or questions, by which units of a kind compare.
    result: the file that exists when it is finished.
    """

    kind: str
    folder: Path
    arguments: tuple[str, ...]
    work: int
    result: str

    @property
    def is_done(self) -> bool:
        """Whether its result exists."""
        return (self.folder / self.result).exists()

    @property
    def cost(self) -> dict[str, float]:
        """Seconds of wall time and of processors so far."""
        path = self.folder / COST_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}

    @property
    def command(self) -> str:
        """For people and records, without local paths."""
        return shlex.join(["videopanda", *map(self._told, self.arguments)])

    def _told(self, part: str) -> str:
        key, equals, value = part.rpartition("=")
        value = value.removeprefix(f"{self.folder.parent}{os.sep}")
        return f"{key}{equals}{Path(value).name if os.path.isabs(value) else value}"


@dataclass(frozen=True)
class Cell:
    """A row with a seed: the units that lead to its numbers, in order, and all settings that decide these (`Table`)."""

    row: str
    seed: int
    units: tuple[LabCommand, ...]
    experiment: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row}, seed {self.seed}"


def cells(table: Table, budget: str, runs: Path, seeds: int | None = None, start: Path | None = None) -> list[Cell]:
    """All cells, first all rows of seed 0.

    Args:
        runs: folder that holds the folder of every unit.
        seeds: instead of those of the budget.
        start: a language model to start from, instead of the stage `language`.

    Raises:
        ValueError: a wrong setting, a row that a stage would refuse or that changes nothing, or `start` is no model
            folder.
    """
    check(table, budget, start)
    number = seeds or table.budget(budget).seeds
    return [_cell(table, row.name, seed, budget, runs, start) for seed in range(number) for row in table.rows]


def _cell(table: Table, row: str, seed: int, budget: str, runs: Path, start: Path | None) -> Cell:
    units: list[LabCommand] = []
    parent, origin = start, _origin(start)
    language: tuple[Path | None, str] = parent, origin
    for training in table.chain(row, seed, budget):
        if training.stage == "language" and start:
            continue
        config = make_config(training.stage, training.config, training.options)
        settings, outcome = dict(training.settings), training.outcome
        for key in TOWERS:
            if getattr(config, key) in table.teachers:
                teacher = _teacher(table, getattr(config, key), *language, runs)
                units += [teacher] if teacher not in units else []
                settings[key] = str(teacher.folder)
                outcome[key] = teacher.folder.name
        read = {key: _content(outcome[key]) for key in (*TOWERS, "data") if key in outcome}
        origin = _digest([training.stage, outcome | read], origin)
        folder = runs / f"{training.stage}-{origin}"
        arguments = ["train", training.stage, "--config", training.config]
        arguments += ["--model", str(parent)] if parent else []
        arguments += ["--output", str(folder)]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        units.append(LabCommand(training.stage, folder, tuple(arguments), config.max_steps or 1, "config.json"))
        parent = folder
        if training.stage == "language":
            language = parent, origin
    questions = table.budget(budget).questions
    digest = _digest(["evaluate", questions, QUESTIONS_SEED], origin)
    folder = runs / f"evaluate-{digest}"
    clips = clips_folder(runs, questions)
    arguments = ["evaluate", "scenes", "--model", str(parent), "--num", str(questions), "--seed", str(QUESTIONS_SEED)]
    arguments += ["--media-root", str(clips), "--output", str(folder), "--json"]
    units.append(LabCommand("evaluate", folder, tuple(arguments), questions * len(CONDITIONS), "report.json"))
    experiment = table.experiment(row, seed, budget, _digest("start", _origin(start)) if start else "")
    return Cell(row, seed, tuple(units), experiment)


def clips_folder(runs: Path, questions: int) -> Path:
    """The folder of the test that all rows share."""
    return runs / f"test-{QUESTIONS_SEED}-{questions}"


def _digest(identity: Any, origin: str) -> str:
    return hashlib.sha256(json.dumps([identity, origin], sort_keys=True).encode()).hexdigest()[:10]


def _origin(start: Path | None) -> str:
    """Identifies the language model."""
    if start is None:
        return ""
    files = sorted(start.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{start} is not a model folder: it has no *.safetensors")
    return " ".join(file_sha256(file) for file in files)


@cache
def _content(name: str) -> str:
    """What a setting names: a digest of that file, or of the model in that folder; the name itself where neither is."""
    path = Path(name)
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for kind in ("config.json", "*.safetensors", "*.bin") for file in path.glob(kind))
    return " ".join(file_sha256(file) for file in files) or name


# -- running -----------------------------------------------------------------------------------------------------------
def run(
    table: Table,
    budget: str,
    runs: Path,
    results: Path,
    seeds: int | None = None,
    jobs: int = 1,
    start: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run all cells of a table that are not finished; `say` gets a line for every step.

    Raises:
        LabStoppedError: a signal (SIGINT or SIGTERM) stopped it. Trainings stop after a checkpoint.
        ValueError: a setting is wrong, `results` is no file of results, or a command failed; the message has the end
            of its output.
    """
    planned = cells(table, budget, runs, seeds, start)
    file = ResultsFile(results, table)
    runner = _Runner(planned, jobs, say)
    handlers = {number: signal.signal(number, runner.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(runner.run, cell): cell for cell in planned}
            try:
                for done in as_completed(waiting):
                    done.result()
                    cell = waiting[done]
                    row = file.find(cell, budget) or measured(cell, budget, file)
                    runner.say(f"{cell.name}: {100 * row['accuracy']:.1f} % ({runner.left()})")
            finally:  # if a cell fails, the others stop, too
                runner.stop()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Runner:
    """Runs the units of cells, those that are shared once; can be stopped from a signal handler."""

    def __init__(self, planned: Sequence[Cell], jobs: int, say: Callable[[str], None]):
        self.jobs, self._say, self._saying = jobs, say, threading.Lock()
        threads = max(1, (os.cpu_count() or 1) // jobs)  # of each process: more than cores only slow each other down
        self.program = [
            *(["env", f"OMP_NUM_THREADS={threads}"] if jobs > 1 else []),
            sys.executable,
            "-m",
            "videopanda",
        ]
        self.units = {unit.folder: unit for cell in planned for unit in cell.units}
        self.locks = {folder: threading.Lock() for folder in self.units}
        self.active: dict[Path, tuple[subprocess.Popen, float]] = {}
        self.is_stopped = False

    def say(self, line: str) -> None:
        """Say a line, one thread at a time."""
        with self._saying:
            self._say(line)

    def stop(self, *_: Any) -> None:
        """Start nothing more, and let trainings stop after a checkpoint."""
        self.is_stopped = True
        for process, _began in list(self.active.values()):
            process.terminate()

    def run(self, cell: Cell) -> None:
        """Run what is missing of a cell."""
        for unit in cell.units:
            with self.locks[unit.folder]:  # the first cell that needs a shared unit runs it, others wait
                if not unit.is_done:
                    self._run(unit, cell.name)

    def _run(self, unit: LabCommand, name: str) -> None:
        if self.is_stopped:
            raise LabStoppedError
        unit.folder.mkdir(parents=True, exist_ok=True)
        self.say(f"{name}: {unit.kind} in {unit.folder.name} ({self.left()})")
        began = time.monotonic()
        with (unit.folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*self.program, *unit.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            self.active[unit.folder] = process, began
            if self.is_stopped:  # the signal came before it was known
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            del self.active[unit.folder]
        before = unit.cost
        cost = {"seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        text = json.dumps({key: round(before[key] + value, 1) for key, value in cost.items()})
        (unit.folder / COST_FILE).write_text(text + "\n", encoding="utf-8")
        if self.is_stopped or process.returncode == _STOPPED:
            raise LabStoppedError
        if process.returncode < 0:
            killed = signal.Signals(-process.returncode).name
            raise ValueError(
                f"{name}: {unit.kind} was ended by {killed}"
                + " (is there enough memory? then fewer --jobs)" * (killed == "SIGKILL")
                + "; the same command continues"
            )
        if process.returncode or not unit.is_done:
            raise ValueError(
                f"{name}: {unit.kind} failed, see {unit.folder / LOG_FILE}: {_reason(unit.folder / LOG_FILE)}"
            )

    def left(self) -> str:
        """Units that are finished, and the time that the others take at the pace of those of their kind."""
        done = [unit for unit in self.units.values() if unit.is_done]
        pace: dict[str, float] = {}
        for unit in done:
            if unit.cost["seconds"]:
                pace[unit.kind] = unit.cost["seconds"] / unit.work
        now = time.monotonic()
        for folder, (_, began) in list(self.active.items()):
            unit = self.units[folder]
            if unit.kind not in pace and (steps := _steps(folder)):
                pace[unit.kind] = (now - began + unit.cost["seconds"]) / steps
        rest = [unit for unit in self.units.values() if not unit.is_done]
        minutes = sum(pace.get(unit.kind, 0.0) * (unit.work - _steps(unit.folder)) for unit in rest) / 60
        minutes /= min(self.jobs, max(1, len(rest)))
        count = f"{len(done)} of {len(self.units)} runs done"
        if rest and not any(unit.kind in pace for unit in rest):
            return f"{count}, time left not known yet"
        least = "at least " if any(unit.kind not in pace for unit in rest) else ""
        time_left = f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.0f} min"
        return f"{count}, {least}{time_left} left"


def _reason(log: Path) -> str:
    """The error message of a command, or the last line of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if line.startswith("videopanda: ")]
    return "".join((told or lines)[-1:])


def _steps(folder: Path) -> int:
    """The last step that a training run has logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:  # being written
        return 0


def _teacher(table: Table, name: str, language: Path | None, origin: str, runs: Path) -> LabCommand:
    """The unit that trains a teacher of a table; the language model gives it the words of captions."""
    settings = table.teachers[name]
    digest = _digest(["teacher", dict(settings)], origin)
    folder = runs / f"teacher-{digest}"
    arguments = ["lab", "teacher", "--model", str(language), "--output", str(folder)]
    for key, value in settings.items():
        arguments += [f"--{key.replace('_', '-')}", str(value)]
    return LabCommand("teacher", folder, tuple(arguments), int(settings.get("steps", 1)), "config.json")
