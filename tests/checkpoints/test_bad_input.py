"""Protects those who pass the wrong thing: one clear line on stderr, exit code 2, nothing written."""

import json
import os
import re
import shutil
import sys

import pytest
import torch

from official import golden_weights, official_config, write_official
from tiny import tiny_config
from videopanda.cli import app as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["videopanda", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("whole") / "official", golden_weights())


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def cut(name, share=0.5):
    def spoil(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def with_code(zip_format):
    def spoil(folder):
        content = {"lm_head.weight": Command(folder.parent / "it_ran")}
        file = folder / "pytorch_model-00002-of-00002.bin"
        torch.save(content, file, _use_new_zipfile_serialization=zip_format)

    return spoil


def writing(name, content):
    return lambda folder: (folder / name).write_text(content)


def into_a_repository(folder):
    inside = folder / "videopanda_prtr1"
    inside.mkdir()
    (folder / "config.json").rename(inside / "config.json")


SECOND = "pytorch_model-00002-of-00002.bin"
CASES = {
    "no folder": (shutil.rmtree, "no model folder at"),
    "empty folder": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "not a checkpoint: it has no config.json"),
    "whole repository": (into_a_repository, "it contains the checkpoints videopanda_prtr1: pass one of them"),
    "config of another model": (writing("config.json", '{"model_type": "llava"}'), "has the architecture 'llava'"),
    "config that is no object": (writing("config.json", "[1]"), "config.json is damaged"),
    "config that is no JSON": (writing("config.json", "{"), "config.json is damaged"),
    "our own checkpoint": (lambda folder: tiny_config().save_pretrained(folder), "needs no conversion"),
    "half a shard": (cut(SECOND), f"{SECOND} is damaged or incomplete"),
    "a shard short of one byte": (cut(SECOND, 0.9999), f"{SECOND} is damaged or incomplete"),
    "empty shard": (cut(SECOND, 0), f"{SECOND} is empty"),
    "missing shard": (lambda folder: (folder / SECOND).unlink(), f"is incomplete: {SECOND} is missing"),
    "missing index": (lambda folder: (folder / "pytorch_model.bin.index.json").unlink(), "is incomplete: it has"),
    "damaged index": (cut("pytorch_model.bin.index.json"), "is not an index"),
    "pointer instead of a shard": (writing(SECOND, "version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "code in a shard": (with_code(True), "could run code: it wants to run posix.system"),
    "code in an old shard": (with_code(False), "could run code: it wants to run posix.system"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "has no tokenizer"),
    "damaged tokenizer": (cut("tokenizer.model"), "is not a SentencePiece model"),
    "damaged preprocessor": (cut("videopanda/config/preprocessor_config.json"), "is damaged: it is not JSON"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_two(case, whole, tmp_path, run):
    spoil, reason = CASES[case]
    folder = tmp_path / "official"
    shutil.copytree(whole, folder)
    spoil(folder)
    code, out, err = run("convert", folder, tmp_path / "ours")
    assert (code, out) == (2, "")
    assert err.startswith("videopanda: error: ")
    assert reason in err
    assert err.count("\n") == 1
    assert not {"ours", "ours.incomplete", "it_ran"} & {path.name for path in tmp_path.iterdir()}


def test_a_language_model_that_does_not_fit_its_config(tmp_path, run):
    source = write_official(tmp_path / "official", golden_weights(), official_config(num_hidden_layers=7))
    code, out, err = run("convert", source, tmp_path / "ours")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "unknown to the conversion: model.layers.7." in err
    source = write_official(tmp_path / "official", golden_weights(), official_config(num_hidden_layers=9))
    code, out, err = run("convert", source, tmp_path / "ours")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "lacks 9 of the model's weights: model.language_model.layers.8." in err


# -- and the right thing -----------------------------------------------------------------------------------------------
def test_the_report_for_people_and_for_machines(whole, tmp_path, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("convert", whole, tmp_path / "one")
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    for line in (
        ["used", "lm_head.weight"],
        ["renamed", "model.video_tower.balance → model.stab.fusion.balance"],
        ["renamed", "8 ×  model.layers.*.mlp.up_proj.weight → model.language_model.layers.*.mlp.up_proj.weight"],
        ["dropped", "model.video_tower.lmhra2.pos_embed.1.bias (branch that no forward pass uses)"],
    ):
        assert line in lines
    assert any("frozen teacher of the distillation" in line[-1] for line in lines if line)
    totals = json.loads((tmp_path / "one" / "conversion.json").read_text())["totals"]
    for action, number in totals.items():
        assert any(re.match(rf"│ {action} +│ +{number} │", line) for line in out.splitlines()), action
    assert f"videopanda verify {tmp_path / 'one'}" in out
    code, out, err = run("convert", whole, tmp_path / "two", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "two" / "conversion.json").read_text())
    (tmp_path / "two" / "pytorch_model.bin").touch()
    code, out, err = run("convert", whole, tmp_path / "two", "--allow", "x")
    assert (code, out) == (2, "")
    assert "already exists" in err


def test_assumptions_are_said_on_stderr(tmp_path, run):
    source = write_official(tmp_path / "official", golden_weights(), preprocessor=False)
    code, _, err = run("convert", source, tmp_path / "ours")
    assert code == 0
    assert err.startswith("videopanda: no preprocessor_config.json at videopanda/config")
    assert err.count("\n") == 1
