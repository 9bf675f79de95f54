"""Protects an installation without optional packages: everything else works, and what is missing is named with the
command that installs it.
"""

import json
import shlex
import subprocess
import sys

import pytest

from media import write_video
from official import write_official
from tiny import tiny_model, tiny_processor
from videopanda.inference.load import BUNDLED_MODEL

CLIP = str(BUNDLED_MODEL.parent / "demo.mp4")
# All that the extras install and the package itself does not need.
HIDDEN = (
    "torchcodec matplotlib peft google.protobuf sentencepiece tensorboard torchdata deepspeed trackio wandb "
    "bitsandbytes openai pyarrow ray fastapi uvicorn multipart prometheus_client llguidance mcp panda3d"
)
# Runs many commands in one process in which those packages cannot be found.
RUNNER = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
from io import StringIO

hidden, found = set(sys.argv[1].split()), PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if {name, name.partition(".")[0]} & hidden else found(name, path, target)


PathFinder.find_spec = find_spec
from videopanda.cli.app import main

results = []
for words in json.loads(sys.argv[2]):
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
    ("answer CLIP What? --quantize int4", "qlora"),
    ("evaluate report PLACE/s.jsonl --output PLACE/report", "eval"),
    ("evaluate judge custom PLACE/labelled/test.jsonl PLACE/p.jsonl --output PLACE/j.jsonl --name x", "eval"),
    ("evaluate predict custom PLACE/labelled/test.jsonl --model MODEL --output PLACE/r.jsonl --engine ray", "ray"),
    ("scenes make PLACE/tabletop --num 1 --world tabletop", "worlds"),
    ("serve --model MODEL", "serve"),
    ("mcp --media-root PLACE --model MODEL", "mcp"),
    ("bench efficiency --plot PLACE/chart.png", "bench"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    place = tmp_path_factory.mktemp("bare")
    for label in ("left", "right"):
        (place / "clips" / label).mkdir(parents=True)
        for number in range(2):
            write_video(place / "clips" / label / f"{number}.mp4", range(8 + number), fps=4)
    write_official(place / "official")
    tiny_model().save_pretrained(place / "model")
    tiny_processor().save_pretrained(place / "model")
    named = {"CLIP": CLIP, "MODEL": str(place / "model")}

    def words(command: str) -> list[str]:
        return [named.get(word, word.replace("PLACE", str(place))) for word in shlex.split(command)]

    commands = json.dumps([words(command) for command, _ in COMMANDS])
    done = subprocess.run([sys.executable, "-c", RUNNER, HIDDEN, commands], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip((command for command, _ in COMMANDS), json.loads(done.stdout.rpartition("RESULTS ")[2])))


@pytest.mark.parametrize(("command", "extra"), COMMANDS)
def test_what_is_missing_is_named_and_the_rest_works(results, command, extra):
    code, _, err = results[command]
    if extra is None:
        assert code == 0, err
        return
    assert code == 2, err
    assert f"pip install 'videopanda[{extra}]'" in err.splitlines()[-1]
