"""Check reference numbers: every file of a folder that is laid out as the golden README says.

    python tests/golden_check.py DIR

One line per file: its largest error beside its tolerance. The exit code is 1 when an error is too large, when a file is
damaged, has no place in the layout or lacks a companion, and when nothing was checked at all.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from golden_checks import data, stab, whole
from golden_checks.findings import Findings

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
COMPANIONS = ("weights of a tower", "weights of a whole model", "configuration of a whole model", "tokenizer")
PREPROCESS = re.compile(r"preprocess_(\d+)x(\d+)_(\d+)f")
# What a damaged file may raise, wherever its numbers meet arithmetic.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError),
    *(StopIteration, TypeError, ValueError, SafetensorError, StrictDataclassError),
)


@dataclass
class Folder:
    """Files by what they hold."""

    cases: dict[Path, str] = field(default_factory=dict)  # kind of each file with reference numbers
    companions: dict[str, list[Path]] = field(default_factory=lambda: {kind: [] for kind in COMPANIONS})
    unknown: dict[Path, str] = field(default_factory=dict)  # with the reason


def sort_files(root: Path) -> Folder:
    """Find out what every file below `root` is, by its contents."""
    folder, texts = Folder(), []
    files = sorted(path for path in root.rglob("*") if path.is_file())
    folder.companions["tokenizer"] = [path.parent for path in files if path.name == "tokenizer.model"]
    for path in files:
        if path.name == "README.md":
            continue
        if path.name in TOKENIZER_FILES and path.parent in folder.companions["tokenizer"]:
            continue
        try:
            kind = kind_of(path)
        except DAMAGE as error:
            folder.unknown[path] = f"cannot be read: {one_line(error)}"
            continue
        if kind == "texts":
            texts.append(path)
        elif kind in COMPANIONS:
            folder.companions[kind].append(path)
        elif kind is not None:
            folder.cases[path] = kind
        else:
            folder.unknown[path] = "nothing of the golden layout"
    for path in texts:
        if folder.cases.get(path.with_suffix(".safetensors")) != "whole":
            folder.unknown[path] = "texts of a whole model without its tensors"
    return folder


def kind_of(path: Path) -> str | None:
    """What a file holds, or None for nothing of the layout."""
    kinds = {".safetensors": kind_of_tensors, ".json": kind_of_json}
    return kinds[path.suffix](path) if path.suffix in kinds else None


def kind_of_tensors(path: Path) -> str | None:
    """What a file of tensors holds, by their names."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    if "lm_head.weight" in names:
        return "weights of a whole model"
    if any(name.startswith(("merged_", "gen.")) for name in names):
        return "whole"
    if "hidden_states" in names and "teacher_features" in names:
        return "distill"
    if any(name.startswith(("tokens_rows.", "token_l2.")) for name in names):
        return "real"
    if any(name.startswith("tokens.v") for name in names):
        return "stab"
    if names and all(name.startswith(("video_tower.", "video_projector.")) for name in names):
        return "weights of a tower"
    if any(name.startswith(("student", "teacher")) for name in names):
        return "preprocess"
    return None


def kind_of_json(path: Path) -> str | None:
    """What a table holds, by its fields."""
    content = read_json(path)
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if {"num_frames", "avg_fps", "positions"} <= first.keys():
        return "sampling"
    if {"source", "student", "teacher"} <= first.keys():
        return "preprocess_table"
    if isinstance(content, dict):
        if "llm" in content and "preprocessor" in content:
            return "configuration of a whole model"
        if "train" in content or "infer" in content:
            return "prompts"
        if "question" in content or "grad_l2" in content:
            return "texts"
    return None


def check(folder: Folder, path: Path, kind: str) -> Findings:
    """Check one file.

    Raises:
        ValueError: a companion is missing, or the name does not tell what it should.
    """
    if kind == "sampling":
        return data.check_sampling(read_json(path))
    if kind == "preprocess_table":
        return data.check_preprocess_table(read_json(path))
    if kind == "prompts":
        table = read_json(path)
        return best_fit(folder, lambda tokenizer: data.check_prompts(table, load(tokenizer)), "tokenizer")
    golden = load_file(path)
    if kind == "preprocess":
        match = PREPROCESS.fullmatch(path.stem)
        if match is None:
            raise ValueError("its name must tell the source size and the frames: preprocess_{w}x{h}_{n}f")
        return data.check_preprocess(golden, *map(int, match.groups()))
    if kind == "real":
        return stab.check_real(golden, path.stem)
    if kind == "distill":
        return whole.check_distill(golden)
    if kind == "whole":
        texts = read_json(path.with_suffix(".json"))
        return best_fit(
            folder,
            lambda config, weights, tokenizer: whole.check_whole(
                load(config), load(weights), golden, texts, load(tokenizer)
            ),
            *("configuration of a whole model", "weights of a whole model", "tokenizer"),
        )
    return best_fit(folder, lambda weights: stab.check_stab(golden, load(weights)), "weights of a tower")


def best_fit(folder: Folder, run: Callable[..., Findings], *kinds: str) -> Findings:
    """Run with the companions of these kinds that fit best.

    A case does not name its companions, but wrong ones are off by far more than any tolerance.

    Raises:
        ValueError: a companion is missing.
        DAMAGE: the case cannot be used with any of them.
    """
    for kind in kinds:
        if not folder.companions[kind]:
            raise ValueError(f"there is no {kind} beside it")
    found, damage = [], []
    for companions in product(*(folder.companions[kind] for kind in kinds)):
        try:
            found.append(run(*companions))
        except DAMAGE as error:
            damage.append(error)
            continue
        if found[-1].hold:
            return found[-1]
    if not found:
        raise damage[0]
    return min(found, key=lambda findings: findings[findings.worst][0] if findings else math.inf)


def read_json(path: Path) -> Any:
    """The content of a table."""
    return json.loads(path.read_text(encoding="utf-8"))


def load(companion: Path) -> Any:
    """Tensors, a configuration or a tokenizer."""
    if companion.is_dir():
        return data.load_tokenizer(companion)
    return load_file(companion) if companion.suffix == ".safetensors" else read_json(companion)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder laid out as the golden README says")
    root: Path = parser.parse_args(arguments).folder
    if not root.is_dir():
        print(f"{root} is not a folder")
        return 1
    torch.set_num_threads(1)
    folder = sort_files(root)
    failed, compared = len(folder.unknown), 0
    for path, why in folder.unknown.items():
        print(f"FAILED  {path.relative_to(root)}: {why}")
    loads = {
        **dict.fromkeys(folder.companions["weights of a tower"], stab.check_stab_weights),
        **dict.fromkeys(folder.companions["weights of a whole model"], whole.check_whole_weights),
    }
    for path in sorted([*folder.cases, *loads]):
        name = path.relative_to(root)
        try:
            findings = loads[path](load_file(path)) if path in loads else check(folder, path, folder.cases[path])
        except DAMAGE as error:
            print(f"FAILED  {name}: {one_line(error)}")
            failed += 1
            continue
        compared += len(findings) if path in folder.cases else 0
        failed += not findings.hold
        print(f"{'ok    ' if findings.hold else 'FAILED'}  {name}: {describe(findings)}")
    if not compared:
        print(f"FAILED  nothing was checked: no reference numbers in {root} could be compared")
        return 1
    print(f"{compared} comparisons in {len(folder.cases)} files, {failed} files failed")
    return 1 if failed else 0


def describe(findings: Findings) -> str:
    """The largest error beside its tolerance, and all that do not hold."""
    if not findings:
        return "holds nothing that can be compared"
    error, tolerance = findings[findings.worst]
    broken = [name for name in findings if not findings.holds(name)]
    also = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"largest error {error:.1e}, tolerance {tolerance:.0e} ({findings.worst}){also}; {len(findings)} comparisons"


if __name__ == "__main__":
    sys.exit(main())
