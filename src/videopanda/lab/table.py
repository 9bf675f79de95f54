"""A table of experiments as data: rows that change a model or its training, budgets, and the published numbers.

    table = read("table4")                    # comes with the package; or read("my.yaml"), a file
    chain = table.chain("no row token", seed=0, budget="small")
    chain[-1].settings                        # {"seed": "45", "max_steps": "400", …}

A table is a YAML file (a JSON file also works); docs/lab.md explains its keys. `base` names another table: keys that
are not in the file are taken from there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from videopanda.data.worlds.scenes.questions import FAMILIES
from videopanda.training.run_folder import WITHOUT_EFFECT
from videopanda.training.stages import STAGES, StageConfig, make_config

TABLES = Path(__file__).parent / "tables"
QUESTIONS_SEED = 0  # the same questions for all rows and seeds: differences are paired
TOWERS = ("teacher", "encoder")  # settings that may name a teacher of the table


@dataclass(frozen=True)
class TableRow:
    """One line of a table.

    fields: of the model, by dotted name; also model_family and model_preset.
    stages: changed settings by stage.
    steps: factor on the number of steps by stage, as 0.5 for half of the data.
    without: stages that are left out.
    compare: the row that this one is compared with, if it is not that of the table; itself: none.
    published: the paper's numbers by benchmark.
    published_differences: to the compared row, where a paper gives no more than a difference.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    without: Sequence[str] = ()
    compare: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    published_differences: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """How much is spent on a table: seeds, questions of the test, and settings by stage."""

    seeds: int
    questions: int
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One stage of one row: `videopanda train STAGE` with these settings."""

    stage: str
    config: str
    settings: dict[str, str]

    @property
    def options(self) -> list[str]:
        """The settings as "key=value"."""
        return [f"{key}={value}" for key, value in self.settings.items()]

    @property
    def outcome(self) -> dict[str, Any]:
        """All settings that decide the outcome and are not the default of every stage, those of the preset included."""
        default = StageConfig(self.stage).as_dict()
        values = make_config(self.stage, self.config, self.options).as_dict()
        return {key: value for key, value in values.items() if key not in WITHOUT_EFFECT and value != default.get(key)}


@dataclass(frozen=True)
class Table:
    """See the module.

    compare: the row that the others are compared with.
    stages: the stages of every row, in order.
    shared: stages that are trained once for all seeds.
    fields, settings: of all rows, as in `TableRow`.
    teachers: by name, how each is trained (lab/teachers.py); the setting `teacher` may name one.
    columns: families of questions that the report shows in addition to the overall accuracy.
    """

    name: str
    title: str
    compare: str
    rows: tuple[TableRow, ...]
    budgets: Mapping[str, Budget]
    source: str = ""
    config: str = "nano"
    stages: Sequence[str] = ("language", "prealign", "pretrain")
    shared: Sequence[str] = ("language",)
    fields: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    columns: Sequence[str] = ()

    def row(self, name: str) -> TableRow:
        """The row of this name.

        Raises:
            ValueError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"table {self.name} has no row {name!r}: choose from {', '.join(r.name for r in self.rows)}")

    def budget(self, name: str) -> Budget:
        """The budget of this name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.budgets:
            raise ValueError(f"table {self.name} has no budget {name!r}: choose from {', '.join(self.budgets)}")
        return self.budgets[name]

    def chain(self, row: str, seed: int, budget: str) -> list[Training]:
        """The trainings of a row, in order. Seed 0 is the one of the preset; shared stages always have it.

        Raises:
            ValueError: an unknown setting or field, or a wrong value.
        """
        line, spent = self.row(row), self.budget(budget)
        model = {**self.fields, **line.fields}
        chain: list[Training] = []
        for stage in self.stages:
            if stage in line.without:
                continue
            settings = {**self.settings.get(stage, {}), **spent.stages.get(stage, {}), **line.stages.get(stage, {})}
            if stage == "language":
                settings |= {key: value for key, value in model.items() if key.startswith("text.")}
            elif not any(training.stage != "language" for training in chain):  # here the vision part is made
                settings |= {key: value for key, value in model.items() if not key.startswith("text.")}
            try:
                settings = self._settled(stage, settings, 0 if stage in self.shared else seed, line.steps.get(stage, 1))
            except ValueError as error:
                raise ValueError(f"table {self.name}, row {row!r}, stage {stage}: {error}") from error
            chain.append(Training(stage, self.config, settings))
        text = [key for key in model if key.startswith("text.")]
        if text and not any(training.stage == "language" for training in chain):
            raise ValueError(f"table {self.name}, row {row!r}: {text[0]} has no effect without stage language")
        return chain

    def experiment(self, row: str, seed: int, budget: str, start: str = "") -> dict[str, dict[str, Any]]:
        """Everything that decides the numbers of a row: settings of its stages, their teachers, and the evaluation.

        Args:
            start: identifies the language model in place of the stage `language`.
        """
        stages = {training.stage: training.outcome for training in self.chain(row, seed, budget)}
        named = {value for outcome in stages.values() for key, value in outcome.items() if key in TOWERS}
        teachers = {f"teacher {name}": dict(self.teachers[name]) for name in sorted(named & self.teachers.keys())}
        if start:
            stages = {"start": {"model": start}, **{k: v for k, v in stages.items() if k != "language"}}
        return {**stages, **teachers, "evaluate": {"questions": self.budget(budget).questions, "seed": QUESTIONS_SEED}}

    def _settled(self, stage: str, settings: Mapping[str, Any], seed: int, steps: float) -> dict[str, str]:
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        config = make_config(stage, self.config, [f"{key}={value}" for key, value in text.items()])
        if steps != 1:
            if not config.max_steps:
                raise ValueError("`steps` is a factor on max_steps, which is not set")
            text["max_steps"] = str(max(1, round(config.max_steps * steps)))
        if seed:
            text["seed"] = str(config.seed + 100 * seed)
        return text


# -- files -------------------------------------------------------------------------------------------------------------
def names() -> list[str]:
    """The tables that come with the package."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def read(name: str | Path) -> Table:
    """Read a table by its name or file, and check all rows at all budgets.

    Raises:
        ValueError: no such table, or something in it is wrong.
    """
    values, path = _with_base(name)
    try:
        table = _table(path.stem, values)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    for budget in table.budgets:
        for row in table.rows:
            table.chain(row.name, 0, budget)
    return table


def _with_base(name: str | Path, above: Sequence[Path] = ()) -> tuple[dict[str, Any], Path]:
    path = Path(name)
    if str(name) in names():
        path = TABLES / f"{name}.yaml"
    elif not path.is_file():
        raise ValueError(f"no table {name}: neither a file nor one of {', '.join(names())}")
    if path in above:
        raise ValueError(f"{path}: base refers to the table itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        raise ValueError(f"{path} is not valid YAML: {where}{getattr(error, 'problem', error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must contain a mapping with the keys title, compare, rows and budgets")
    base = values.pop("base", None)
    # A user's own table is not that of the paper, even if it has the rest from there.
    return ({**_with_base(base, [*above, path])[0], "source": "", **values} if base else values), path


def _table(name: str, values: dict[str, Any]) -> Table:
    listed, named = values.pop("rows", None) or [], values.pop("budgets", None) or {}
    if not isinstance(listed, list) or not isinstance(named, dict):
        raise ValueError("rows must be a list, and budgets a mapping")
    rows = tuple(_made(TableRow, row, "row") for row in listed)
    budgets = {key: _made(Budget, budget, f"budget {key}") for key, budget in named.items()}
    table = _made(Table, {"name": name, **values, "rows": rows, "budgets": budgets}, "table")
    if not rows or not budgets:
        raise ValueError("a table needs rows and budgets (or a base that has budgets)")
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("two rows have the same name")
    for compared in (table.compare, *(row.compare for row in rows if row.compare)):
        table.row(compared)
    known = {
        "stages": set(table.stages),
        "shared": set(table.shared),
        "settings": set(table.settings),
        **{f"budget {key}": set(budget.stages) for key, budget in budgets.items()},
    }
    for place, stages in known.items():
        if wrong := sorted(stages - set(STAGES)):
            raise ValueError(f"{place}: no stage {wrong[0]!r}, choose from {', '.join(STAGES)}")
    for row in rows:
        if wrong := sorted({*row.stages, *row.steps, *row.without} - set(table.stages)):
            raise ValueError(f"row {row.name!r}: no stage {wrong[0]!r}, choose from {', '.join(table.stages)}")
        if wrong := sorted({*row.stages, *row.steps} & set(row.without)):
            raise ValueError(f"row {row.name!r}: settings for stage {wrong[0]}, which it leaves out")
        if any(factor <= 0 for factor in row.steps.values()):
            raise ValueError(f"row {row.name!r}: steps must be positive factors")
    for key, budget in budgets.items():
        if budget.seeds < 1 or budget.questions < len(FAMILIES):
            raise ValueError(f"budget {key}: seeds must be at least 1, and questions at least {len(FAMILIES)}")
    if wrong := sorted(set(table.columns) - set(FAMILIES)):
        raise ValueError(f"columns: no family {wrong[0]!r}, choose from {', '.join(FAMILIES)}")
    return table


def _made(kind: Any, values: Any, what: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"a {what} must be a mapping, got {values!r}")
    known = {found.name for found in fields(kind)}
    if wrong := sorted(set(map(str, values)) - known):
        raise ValueError(f"{what}: unknown key {wrong[0]!r}, choose from {', '.join(sorted(known))}")
    types = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, types[key]):
            raise ValueError(f"{what}: {key} must be {_described(types[key])}, got {value!r:.60}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{what}: {str(error).partition(' ')[2]}") from error


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from a file has the type of a field."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(k, str) and _fits(v, parts[1]) for k, v in value.items())
    if origin in (Sequence, tuple):
        return isinstance(value, list | tuple) and all(_fits(each, parts[0]) for each in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is Mapping:
        inner = get_args(kind)[1]
        return "a mapping" if inner is Any else f"a mapping whose values are each {_described(inner)}"
    if get_origin(kind) in (Sequence, tuple):
        return "a list"
    return {str: "text (in quotation marks)", int: "a whole number", float: "a number"}[kind]


def only(table: Table, rows: Sequence[str]) -> Table:
    """A table with some of its rows; all of them if none is named.

    Raises:
        ValueError: it has no such row.
    """
    chosen = tuple(table.row(name) for name in rows)
    return replace(table, rows=chosen) if chosen else table
