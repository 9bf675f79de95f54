"""Protects an installation without optional packages: everything else works, and what is missing is named with the
command that installs it.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from media import write_video
from official import write_official
from tiny import tiny_model, tiny_processor
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.video import torchcodec
from videopanda.video.read import VideoReadError, read_video

CLIP = str(BUNDLED_MODEL.parent / "demo.mp4")
# All that the extras install and the package itself does not need, as modules.
HIDDEN = (
    "torchcodec matplotlib peft google.protobuf sentencepiece tensorboard torchdata deepspeed trackio wandb "
    "bitsandbytes openai pyarrow ray fastapi uvicorn multipart prometheus_client llguidance websockets mcp panda3d"
)
MODULES = {"protobuf": "google.protobuf", "python-multipart": "multipart", "prometheus-client": "prometheus_client"}
# Runs many commands in one process in which packages cannot be found: the same for all, or for each its own.
RUNNER = """
import json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
from io import StringIO

hidden, found = set(), PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if {name, name.partition(".")[0]} & hidden else found(name, path, target)


PathFinder.find_spec = find_spec
from videopanda.cli.app import main

results = []
for missing, words in json.loads(sys.argv[1]):
    hidden.clear()
    hidden.update(missing.split())
    os.environ["WORLD_SIZE"] = "2" if "strategy=zero2" in words else "1"  # as torchrun sets it
    sys.argv, out, err, code = ["videopanda", *words], StringIO(), StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as error:
        code = error.code
    results.append([code or 0, out.getvalue(), err.getvalue()])
print("RESULTS", json.dumps(results))
"""
# What was typed, and the extra that the message names; None: it works.
COMMANDS = [
    ("answer CLIP What?", None),
    ("plan --video CLIP --model MODEL", None),
    ("verify MODEL", None),
    ("scenes make PLACE/scenes --num 1", None),
    ("data label PLACE/clips PLACE/labelled --question What?", None),
    ("data check PLACE/labelled/train.jsonl --manifest PLACE/manifest.jsonl", None),
    ("evaluate predict custom PLACE/labelled/test.jsonl --model MODEL --output PLACE/p.jsonl", None),
    ("evaluate score custom PLACE/labelled/test.jsonl PLACE/p.jsonl --scorer exact --output PLACE/s.jsonl", None),
    ("push MODEL org/name --dry-run", None),
    ("convert PLACE/official PLACE/converted", "train"),
    ("finetune --data PLACE/labelled/train.jsonl --model MODEL --output PLACE/tuned", "train"),
    ("finetune --data PLACE/labelled/train.jsonl --model MODEL --output PLACE/tuned2 --lora", "train"),
    ("teach PLACE/clips --question What? --model MODEL --output PLACE/taught", "train"),
    ("answer CLIP What? --quantize nf4", "qlora"),
    ("serve --model MODEL --quantize int8", "serve"),
    ("data recaption PLACE/labelled/train.jsonl --output PLACE/c.jsonl --base-url http://x/v1 --name y", "eval"),
    ("lab report table4", "train"),
    ("evaluate report PLACE/s.jsonl --output PLACE/report", "eval"),
    ("evaluate judge custom PLACE/labelled/test.jsonl PLACE/p.jsonl --output PLACE/j.jsonl --name x", "eval"),
    ("evaluate predict custom PLACE/labelled/test.jsonl --model MODEL --output PLACE/r.jsonl --engine ray", "ray"),
    ("scenes make PLACE/tabletop --num 1 --world tabletop", "worlds"),
    ("serve --model MODEL", "serve"),
    ("mcp --media-root PLACE --model MODEL", "mcp"),
    ("bench efficiency --plot PLACE/chart.png", "bench"),
]


# One package is missing, and all others are there.
TRAIN = "finetune --data PLACE/labelled/train.jsonl --model MODEL --output PLACE/never"
ALONE = [
    ("peft", f"{TRAIN} --lora", "train"),  # first: a package that was imported cannot be hidden
    ("tensorboard", f"{TRAIN} --set report_to=tensorboard", "train"),
    ("wandb", f"{TRAIN} --set report_to=wandb", "loggers"),
    ("trackio", f"{TRAIN} --set report_to=trackio", "loggers"),
    ("deepspeed", f"{TRAIN} --set strategy=zero2", "deepspeed"),
    ("bitsandbytes", f"{TRAIN} --lora --quantize nf4", "qlora"),
    ("bitsandbytes", "serve --model MODEL --quantize int8", "qlora"),
    ("bitsandbytes", "chat CLIP --quantize int8", "qlora"),
    ("matplotlib", "teach PLACE/clips --question What? --model MODEL --output PLACE/never", "train"),
    ("pyarrow", "evaluate predict egoschema PLACE/q.parquet --model MODEL --output PLACE/e.jsonl", "eval"),
    ("google.protobuf", "convert PLACE/official PLACE/another", "train"),
    ("sentencepiece", "convert PLACE/official PLACE/other", "train"),
    *(
        (name, "serve --model MODEL", "serve")
        for name in ("fastapi", "uvicorn", "multipart", "prometheus_client", "websockets")
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    for label in ("left", "right"):
        (folder / "clips" / label).mkdir(parents=True)
        for number in range(2):
            write_video(folder / "clips" / label / f"{number}.mp4", range(8 + number), fps=4)
    write_official(folder / "official")
    (folder / "q.parquet").write_bytes(b"not read without its library")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return folder


def results_of(place, commands) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, with the packages that are hidden from it."""
    named = {"CLIP": CLIP, "MODEL": str(place / "model")}

    def words(command: str) -> list[str]:
        return [named.get(word, word.replace("PLACE", str(place))) for word in shlex.split(command)]

    asked = json.dumps([[hidden, words(command)] for hidden, command in commands])
    done = subprocess.run([sys.executable, "-c", RUNNER, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULTS ")[2])


@pytest.fixture(scope="module")
def bare(place):
    found = results_of(place, [(HIDDEN, command) for command, _ in COMMANDS])
    return dict(zip((command for command, _ in COMMANDS), found))


@pytest.fixture(scope="module")
def alone(place, bare):  # which writes the rows
    found = results_of(place, [(hidden, command) for hidden, command, _ in ALONE])
    return dict(zip(((hidden, command) for hidden, command, _ in ALONE), found))


def test_all_optional_packages_are_hidden():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {re.match(r"[\w-]+", wanted)[0] for extra in extras if extra != "dev" for wanted in extras[extra]}
    assert {MODULES.get(name, name) for name in names} == set(HIDDEN.split())


@pytest.mark.parametrize(("command", "extra"), COMMANDS)
def test_what_is_missing_is_named_and_the_rest_works(bare, command, extra):
    code, _, err = bare[command]
    if extra is None:
        assert code == 0, err
        return
    assert code == 2, err
    assert f"pip install 'videopanda[{extra}]'" in err.splitlines()[-1]


@pytest.mark.parametrize(("hidden", "command", "extra"), ALONE)
def test_each_package_is_named_by_itself(alone, place, hidden, command, extra):
    code, _, err = alone[hidden, command]
    assert code == 2, err
    assert f"pip install 'videopanda[{extra}]'" in err.splitlines()[-1]
    assert not (place / "never").exists()


def test_a_decoder_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    torchcodec.load.cache_clear()
    try:
        with pytest.raises(VideoReadError, match=r"pip install 'videopanda\[video\]'"):
            read_video(CLIP, num_frames=1, decoder="torchcodec")
        assert read_video(CLIP, num_frames=1).decoder == "pyav"
    finally:
        torchcodec.load.cache_clear()
