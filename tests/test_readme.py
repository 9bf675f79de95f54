"""Protects the README: its commands parse, and its Python runs. Commands on all other pages parse, too."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from videopanda.cli import app as cli

UsageError = typer.BadParameter.__mro__[1]  # click's, or that of the copy of click in newer typers
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = Path(cli.__file__).parents[1] / "assets" / "demo.mp4"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "src/videopanda/assets").glob("*/README.md")])


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def lines_of(text: str) -> list[str]:
    """Command lines of all bash blocks; continued lines are joined, prompts and comments dropped."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                found.append(shlex.join(words))
    return found


def parse(line: str) -> str:
    """Parse `videopanda …` as the command does, without running it; the name of its verb.

    Raises:
        UsageError: an unknown verb or option, a missing or superfluous argument, or a value of the wrong type.
    """
    words = shlex.split(line)[1:]
    words = words[: words.index(">")] if ">" in words else words
    asks_for_help = "--help" in words
    words = [word for word in words if word != "--help"]
    command, name = typer.main.get_command(cli.app), "videopanda"
    while hasattr(command, "resolve_command") and words:
        name, command, words = command.resolve_command(command.context_class(command, info_name=name), words)
    if not hasattr(command, "resolve_command"):
        for param in command.params:
            param.callback = None  # which would look for the files of the example
        command.make_context(name, words, resilient_parsing=asks_for_help)
    return name


def commands(text: str) -> list[str]:
    return [line for line in lines_of(text) if line.startswith("videopanda ")]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


# -- the tests' own tools ----------------------------------------------------------------------------------------------
SHOWN = """
```bash
$ videopanda answer clip.mp4 "Which way?" \\
    --json   # as one object
make demo
```
```python
print(1)
```
"""


def test_blocks_are_found():
    assert lines_of(SHOWN) == ["videopanda answer clip.mp4 'Which way?' --json", "make demo"]
    assert commands(SHOWN) == ["videopanda answer clip.mp4 'Which way?' --json"]
    assert blocks(SHOWN, "python") == ["print(1)\n"]
    assert parse(commands(SHOWN)[0]) == "answer"


@pytest.mark.parametrize(
    "line",
    [
        "videopanda ask clip.mp4 What?",
        "videopanda answer clip.mp4",
        "videopanda answer clip.mp4 What? --modell x",
        "videopanda answer clip.mp4 What? --num-frames many",
        "videopanda chat clip.mp4 What?",
        "videopanda scenes write out",
        "videopanda evaluate scenes --num 3",
    ],
)
def test_wrong_commands_are_found(line):
    with pytest.raises(UsageError):
        parse(line)


# -- the README --------------------------------------------------------------------------------------------------------
def test_the_readme_shows_how_to_start():
    assert commands(TEXT)
    assert blocks(TEXT, "python")


@pytest.mark.parametrize("line", commands(TEXT))
def test_every_command_parses(line):
    parse(line)


def test_every_make_target_exists():
    lines = [line.split()[1:] for line in lines_of(TEXT) if line.startswith("make ")]
    assert {word for words in lines for word in words if "=" not in word} <= make_targets()


@pytest.mark.parametrize("code", blocks(TEXT, "python"))
def test_every_piece_of_python_runs(code, tmp_path, monkeypatch):
    """In an empty folder that holds the demo clip as `clip.mp4`; paths from the top of the repository work too."""
    shutil.copy(DEMO, tmp_path / "clip.mp4")
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(code, encoding="utf-8")
    runpy.run_path("block.py", run_name="__main__")


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT)
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (ROOT / target).exists()] == []


# -- other pages -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_parses(page):
    for line in commands(page.read_text(encoding="utf-8")):
        parse(line)
