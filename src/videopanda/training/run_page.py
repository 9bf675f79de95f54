"""`index.html` of a run folder: settings, curves, samples with their frames, validation, and what to do next."""

import html
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videopanda.data.loader import EpochDataset
from videopanda.data.sample_sheet import sample_sheet
from videopanda.training.run_folder import write_text

SAMPLES = 4  # shown

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; background: white; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }}
pre {{ font-family: ui-monospace, monospace; overflow-x: auto; padding: .6rem; border: 1px solid gray; }}
</style></head><body>
<h1>{title}</h1>
<p>{state}</p>
{parts}
</body></html>
"""


def write_samples(dataset: EpochDataset, output: Path) -> None:
    """Write `samples.png`: the first samples of a run, as they are trained on."""
    sheet = sample_sheet([dataset[place] for place in range(min(SAMPLES, len(dataset)))])
    if sheet is not None:
        sheet.save(output / "samples.png")


def write_page(output: Path) -> None:
    """Write `index.html` from what is in the folder: `run.json`, `curves.png`, `samples.png`."""
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    is_done = (output / "config.json").exists()
    parts = []
    if measured := record.get("validation"):
        parts.append(_section("Held-out clips", _validation(measured)))
    if (output / "curves.png").exists():
        parts.append(_section("Curves", '<img src="curves.png" alt="losses, accuracy and speed over steps">'))
    if (output / "samples.png").exists():
        parts.append(_section("Samples", '<img src="samples.png" alt="frames of training samples with their answers">'))
    if is_done:
        parts.append(_section("Next", f"<pre>{html.escape(_commands(output))}</pre>"))
    parts.append(_section("Trained parts", _table(_part(part) for part in record["parts"])))
    rest = {"data": record["data"], "versions": record["versions"], "machine": record["machine"]}
    parts.append(_section("Settings", _table(sorted(record["stage"].items()))))
    parts.append(_section("Data and versions", _table((k, v) for part in rest.values() for k, v in part.items())))
    title = html.escape(f"{record['stage']['stage']}: {output.name}")
    state = "Finished." if is_done else "Not finished: the command that started this run continues it."
    write_text(output / "index.html", _PAGE.format(title=title, state=state, parts="\n".join(parts)))


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}"


def _table(rows: Iterable[tuple[Any, Any]]) -> str:
    cells = (f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _part(part: Mapping[str, Any]) -> tuple[str, str]:
    rate = f"learning rate {part['learning_rate']:g}" if part["num_trainable"] else "frozen"
    return part["part"], f"{part['num_parameters']:,} parameters, {rate}"


def _validation(measured: Mapping[str, Mapping[str, float]]) -> str:
    names = [name for name in measured["after"] if name.startswith("validation_")]
    rows: list[tuple[str, ...]] = [("", "before", "after")]
    for name in names:
        shown = (measured[when].get(name) for when in ("before", "after"))
        label = name.removeprefix("validation_").replace("_", " ")
        rows.append((label, *("–" if value is None else f"{value:.4f}" for value in shown)))
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _commands(output: Path) -> str:
    """Commands for what to do next with a trained model."""
    folder = shlex.quote(str(output))
    return "\n".join(
        [
            f'videopanda answer CLIP "QUESTION" --model {folder}',
            f"videopanda evaluate run custom=TEST.jsonl --model {folder} --output {folder}-test",
            f"videopanda serve --model {folder}",
            f"videopanda push {folder} ORG/NAME",
        ]
    )
