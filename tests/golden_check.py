"""Check reference numbers: every file of a folder that is laid out as the golden README says.

    python tests/golden_check.py DIR

One line per file: its largest error beside its tolerance. The exit code is 1 when an error is too large, when a file is
damaged, has no place in the layout or lacks a companion, and when nothing was checked at all.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from golden_checks import data, stab, whole
from golden_checks.findings import Findings

PREPROCESS = re.compile(r"preprocess_(\d+)x(\d+)_(\d+)f")
TOKENIZER_FILE = "tokenizer.model"
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AssertionError, SafetensorError)


@dataclass
class Folder:
    """Files by what they hold."""

    cases: dict[Path, str] = field(default_factory=dict)  # kind of each file with reference numbers
    tower_weights: list[Path] = field(default_factory=list)
    whole_weights: list[Path] = field(default_factory=list)
    whole_configs: list[Path] = field(default_factory=list)
    tokenizers: list[Path] = field(default_factory=list)
    companions: list[Path] = field(default_factory=list)  # read together with a case, or documentation
    unknown: dict[Path, str] = field(default_factory=dict)


def sort_files(root: Path) -> Folder:
    """Find out what every file below `root` is, by its contents."""
    folder = Folder()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    tokenizer_folders = {path.parent for path in files if path.name == TOKENIZER_FILE}
    folder.tokenizers = sorted(tokenizer_folders)
    for path in files:
        if path.parent in tokenizer_folders and path.parent != root:
            folder.companions.append(path)
        elif path.suffix in (".safetensors", ".json"):
            try:
                kind = kind_of_tensors(path) if path.suffix == ".safetensors" else kind_of_json(path)
            except (OSError, ValueError, SafetensorError) as error:
                folder.unknown[path] = f"cannot be read: {one_line(error)}"
                continue
            if kind is None:
                folder.unknown[path] = "nothing of the golden layout"
            elif kind in ("tower_weights", "whole_weights", "whole_configs", "companions"):
                getattr(folder, kind).append(path)
            else:
                folder.cases[path] = kind
        elif path.name == "README.md":
            folder.companions.append(path)
        else:
            folder.unknown[path] = "nothing of the golden layout"
    return folder


def kind_of_tensors(path: Path) -> str | None:
    """What a file of tensors holds, by their names."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    if "lm_head.weight" in names:
        return "whole_weights"
    if "merged_embeds" in names or "gen.new_ids" in names:
        return "whole"
    if "hidden_states" in names and "teacher_features" in names:
        return "distill"
    if any(name.startswith("tokens_rows.") for name in names):
        return "real"
    if any(name.startswith("tokens.v") for name in names):
        return "stab"
    if names and all(name.startswith(("video_tower.", "video_projector.")) for name in names):
        return "tower_weights"
    if PREPROCESS.fullmatch(path.stem) and any(name.startswith(("student", "teacher")) for name in names):
        return "preprocess"
    return None


def kind_of_json(path: Path) -> str | None:
    """What a table holds, by its fields."""
    content = json.loads(path.read_text(encoding="utf-8"))
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if {"num_frames", "avg_fps", "positions"} <= first.keys():
        return "sampling"
    if {"source", "student", "teacher"} <= first.keys():
        return "preprocess_table"
    if isinstance(content, dict):
        if "llm" in content and "preprocessor" in content:
            return "whole_configs"
        if "train" in content or "infer" in content:
            return "prompts"
        if ("grad_l2" in content or "question" in content) and path.with_suffix(".safetensors").exists():
            return "companions"
    return None


def check(folder: Folder, path: Path, kind: str) -> Findings:
    """Check one file.

    Raises:
        ValueError: a companion is missing.
    """
    if kind in ("sampling", "preprocess_table", "prompts"):
        table = json.loads(path.read_text(encoding="utf-8"))
        if kind == "prompts":
            return data.check_prompts(table, data.load_tokenizer(only(folder.tokenizers, "tokenizer")))
        return data.check_sampling(table) if kind == "sampling" else data.check_preprocess_table(table)
    golden = load_file(path)
    if kind == "preprocess":
        match = PREPROCESS.fullmatch(path.stem)
        assert match is not None
        return data.check_preprocess(golden, *map(int, match.groups()))
    if kind == "real":
        return stab.check_real(golden, path.stem)
    if kind == "distill":
        return whole.check_distill(golden)
    if kind == "whole":
        texts = path.with_suffix(".json")
        if not texts.exists():
            raise ValueError(f"{texts.name} is missing")
        tokenizer = data.load_tokenizer(only(folder.tokenizers, "tokenizer"))
        config = json.loads(nearest(path, folder.whole_configs, "configuration").read_text(encoding="utf-8"))
        weights = load_file(nearest(path, folder.whole_weights, "weights"))
        return whole.check_whole(config, weights, golden, json.loads(texts.read_text(encoding="utf-8")), tokenizer)
    return best_weights(folder.tower_weights, lambda weights: stab.check_stab(golden, weights))


def best_weights(files: list[Path], run: Callable[[dict[str, torch.Tensor]], Findings]) -> Findings:
    """A case does not name its weights; wrong ones are off by far more than any tolerance, so the best fit counts."""
    if not files:
        raise ValueError("there are no weights of a tower beside it")
    found, damage = [], []
    for file in files:
        try:
            found.append(run(load_file(file)))
        except DAMAGE as error:
            damage.append(f"with {file.name}: {one_line(error)}")
    if not found:
        raise ValueError("; ".join(damage))
    return min(found, key=lambda findings: (not findings.hold, findings[findings.worst][0]))


def only(items: list[Path], what: str) -> Path:
    """The one companion of its kind."""
    if len(items) != 1:
        raise ValueError(f"needs one {what} beside it, found {len(items)}")
    return items[0]


def nearest(path: Path, candidates: list[Path], what: str) -> Path:
    """The companion whose name starts like the file's."""
    if not candidates:
        raise ValueError(f"its {what} is missing")

    def shared(other: Path) -> int:
        pairs = zip(path.stem, other.stem)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(path.stem), len(other.stem)))

    return max(candidates, key=shared)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
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
    loads: dict[Path, Callable[[], Findings]] = {
        **{path: lambda path=path: stab.check_stab_weights(load_file(path)) for path in folder.tower_weights},
        **{path: lambda path=path: whole.check_whole_weights(load_file(path)) for path in folder.whole_weights},
    }
    for path in sorted([*folder.cases, *loads]):
        name = path.relative_to(root)
        try:
            findings = loads[path]() if path in loads else check(folder, path, folder.cases[path])
        except DAMAGE as error:
            print(f"FAILED  {name}: {one_line(error)}")
            failed += 1
            continue
        compared += len(findings) if path in folder.cases else 0
        failed += not findings.hold
        print(f"{'ok    ' if findings.hold else 'FAILED'}  {name}: {describe(findings)}")
    if not compared:
        print(f"FAILED  nothing was checked: {root} holds no reference numbers")
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
