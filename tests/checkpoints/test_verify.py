"""Protects `videopanda verify`: it passes what is right, and names what is wrong with everything else."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from official import golden_weights, official_weights, write_official, write_sparse
from tiny import tiny_config, tiny_model, tiny_processor
from videopanda.checkpoints import checksums
from videopanda.checkpoints.behavior_checks import GreedyAnswer, check_greedy, first_difference
from videopanda.checkpoints.tensors import find_tensors, read_safetensors_header
from videopanda.checkpoints.verify import verify
from videopanda.checkpoints.weight_checks import Check, Expected, check_keys, check_parameters
from videopanda.cli import app as cli
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.models.generation import CACHE_NAME
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration
from videopanda.models.videopanda.convert import convert
from videopanda.plan.backbones import config_of

MEAN = "model.stab.lste.norm.running_mean"
LSD, FSRA = "model.stab.lsd.query_proj.weight", "model.stab.fsra.query_proj.weight"


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return write_official(tmp_path_factory.mktemp("official") / "official", golden_weights())


@pytest.fixture(scope="module")
def converted(official) -> Path:
    convert(official, official.parent / "ours")
    return official.parent / "ours"


@pytest.fixture
def ours(converted, tmp_path) -> Path:
    """A converted checkpoint that a test may spoil."""
    return Path(shutil.copytree(converted, tmp_path / "ours"))


@pytest.fixture
def light(monkeypatch):
    """Leaves out what runs the model, where a test is about the files."""
    place = "videopanda.checkpoints.verify"
    monkeypatch.setattr(f"{place}.check_greedy", lambda *_: Check("greedy", "skipped"))


def failures(report) -> dict[str, tuple[str, ...]]:
    return {check.name: check.reasons for check in report.checks if check.status == "failed"}


def change(folder: Path, edit) -> None:
    """Load the weights, let `edit` change the dictionary, write them again."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def flip_a_bit(folder: Path, name: str = "model.projector.down.weight") -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    place = read_safetensors_header(file)[name]
    data[place.offset + 40] ^= 1  # the lowest bit of a float32
    file.write_bytes(data)


# -- what is right -----------------------------------------------------------------------------------------------------
def test_the_bundled_model_passes():
    report = verify(BUNDLED_MODEL)
    assert failures(report) == {}
    skipped = {check.name for check in report.checks if check.status == "skipped"}
    assert skipped <= {"checksums"}  # recorded with: videopanda verify src/videopanda/assets/nano --record


def test_a_converted_checkpoint_passes(official, converted):
    report = verify(converted, against=official)
    assert failures(report) == {}
    assert {check.name: check.status for check in report.checks} == dict.fromkeys(
        ("keys", "parameters", "values", "checksums", "against", "greedy"), "passed"
    )


@pytest.mark.parametrize(("preset", "text"), [("paper", "qwen3"), ("eve_star", "llama")])
def test_presets_and_other_language_models_pass(preset, text, tmp_path):
    tiny_model(preset, text).save_pretrained(tmp_path)
    tiny_processor(preset).save_pretrained(tmp_path)
    report = verify(tmp_path, record=True)
    assert failures(report) == {}
    assert report.recorded
    assert verify(tmp_path).passed


def test_the_7b_manifest():
    """All shapes of the released model, from a header alone."""
    expected = Expected(config_of("vicuna-7b-v1.5", preset="released"))
    assert sum(torch.Size(expected.shapes[name]).numel() for name in expected.parameters) == 6_783_498_578
    assert "model.stab.lste.norm.running_var" in expected.shapes


def test_the_7b_manifest_beside_a_file(tmp_path):
    expected = Expected(config_of("vicuna-7b-v1.5", preset="released"))
    write_sparse(tmp_path / "model.safetensors", expected.shapes)
    places = find_tensors(tmp_path)
    assert check_keys(expected, places).status == "passed"
    check = check_parameters(expected, places)
    assert check.status == "passed"
    assert check.details["vision"] == {"found": 45_066_578, "expected": 45_066_578}
    assert check.details["parts"]["projector"] == {"found": 20_979_712, "expected": 20_979_712}
    assert check.details["parts"]["stab.gstra"]["found"] == 12_598_272 + 1024  # with its query


def test_a_model_is_not_run_where_it_does_not_fit(tmp_path):
    """Weights of two bytes take four while a small model runs."""
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    count = sum(weight.numel() for weight in tiny_model().parameters())
    for limit, status in ((4 * count - 1, "skipped"), (4 * count, "passed")):
        assert {check.name: check.status for check in verify(tmp_path, max_bytes=limit).checks}["greedy"] == status


# -- what is wrong with the files --------------------------------------------------------------------------------------
def test_one_flipped_bit(ours, light):
    assert failures(verify(ours)) == {}
    flip_a_bit(ours)
    reason = "model.projector.down.weight differs in value, type or shape, against what was recorded"
    assert failures(verify(ours)) == {"checksums": (reason,)}


def test_one_flipped_bit_against_the_source(ours, official, light):
    (ours / "checksums.json").unlink()
    assert verify(ours).passed  # nothing says what the value was
    flip_a_bit(ours)
    reason = "model.projector.down.weight differs in value, type or shape, against what was in the official checkpoint"
    assert failures(verify(ours, against=official)) == {"against": (reason,)}


def test_a_missing_batch_norm_statistic(ours):
    change(ours, lambda weights: weights.pop(MEAN))
    report = verify(ours)
    (reason,) = failures(report)["keys"]
    assert reason == f"{MEAN} is missing (batch norm statistic; a loader would put its initial value there)"
    assert {check.name for check in report.checks if check.status == "skipped"} == {"greedy"}


def test_two_swapped_tensors(ours, official, light):
    def swap(weights):
        weights[LSD], weights[FSRA] = weights[FSRA], weights[LSD]

    change(ours, swap)
    for check, reasons in failures(verify(ours, against=official)).items():
        origin = "recorded" if check == "checksums" else "in the official checkpoint"
        assert set(reasons) == {
            f"{LSD} holds the values of {FSRA}, against what was {origin}",
            f"{FSRA} holds the values of {LSD}, against what was {origin}",
        }
    assert failures(verify(ours, against=official)).keys() == {"checksums", "against"}


def test_aliases_of_the_source_that_disagree(ours, tmp_path, light):
    weights = official_weights()
    one, two = (f"model.vision_tower.{part}_attention.q.1.weight" for part in ("local", "global"))
    weights[one], weights[two] = weights[two], weights[one]
    source = write_official(tmp_path / "source", weights)
    (reason,) = failures(verify(ours, against=source))["against"]
    assert f"model.video_tower.global_attention.q.1.weight and {two} are" in reason
    assert "two names of one tensor, but their values differ" in reason


def test_a_tied_head_with_values_of_its_own(tmp_path, light):
    config = tiny_config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    VideoPandaForConditionalGeneration(config).save_pretrained(tmp_path)
    assert verify(tmp_path).passed
    embedding = "model.language_model.embed_tokens.weight"
    change(tmp_path, lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()}))
    assert verify(tmp_path).passed
    change(tmp_path, lambda weights: weights["lm_head.weight"].mul_(2))
    (reason,) = failures(verify(tmp_path))["keys"]
    assert reason == f"{embedding} and lm_head.weight are two names of one tensor, but their values differ"


def test_weights_too_many_or_of_another_shape(ours, light):
    change(ours, lambda weights: weights.update(extra=torch.ones(1), **{MEAN: torch.ones(3)}))
    found = failures(verify(ours))
    assert found["keys"] == (
        f"{MEAN} has the shape (3,), but the configuration requires (64,)",
        "extra is not part of this model",
    )


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        (LSD, lambda t: t[0].fill_(float("nan")), f"{LSD} holds 64 values that are not finite"),
        (LSD, lambda t: t[0, 0].fill_(float("-inf")), f"{LSD} holds 1 values that are not finite"),
        ("model.stab.lste.norm.running_var", lambda t: t[5].fill_(-1), "is negative somewhere: it is a variance"),
    ],
)
def test_values_that_cannot_be(name, edit, reason, ours, light):
    change(ours, lambda weights: edit(weights[name]))
    (found,) = failures(verify(ours))["values"]
    assert reason in found


def test_types_that_cannot_be(ours, light):
    change(ours, lambda weights: weights.update({LSD: weights[LSD].to(torch.int32)}))
    config = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert failures(verify(ours))["values"] == (
        f"{LSD} has the type I32: weights are floating-point numbers",
        "the configuration says BF16, but most weights have the type F32",
    )


def test_record_needs_a_checkpoint_that_passes(ours, light):
    (ours / "checksums.json").unlink()
    change(ours, lambda weights: weights[LSD].fill_(float("nan")))
    report = verify(ours, record=True)
    assert not report.passed
    assert not report.recorded
    assert checksums.read(ours) is None


# -- what is wrong when the model runs ---------------------------------------------------------------------------------
def test_positions_that_are_wrong_behind_a_cache(converted, monkeypatch):
    config = VideoPandaConfig.from_pretrained(converted)
    assert check_greedy(converted, config, 1000).status == "passed"
    right = VideoPandaForConditionalGeneration.prepare_inputs_for_generation

    def shifted(self, *args, **kwargs):
        inputs = right(self, *args, **kwargs)
        if inputs.get(CACHE_NAME) is not None and inputs[CACHE_NAME].get_seq_length():
            inputs["position_ids"] = inputs["position_ids"] + 7
        return inputs

    monkeypatch.setattr(VideoPandaForConditionalGeneration, "prepare_inputs_for_generation", shifted)
    check = check_greedy(converted, config, 1000)
    assert check.status == "failed"
    assert any("without cache" in reason for reason in check.reasons)


def test_padding_that_is_seen(converted, monkeypatch):
    right = VideoPandaForConditionalGeneration.prepare_inputs_for_generation

    def unmasked(self, *args, **kwargs):
        inputs = right(self, *args, **kwargs)
        return {name: value for name, value in inputs.items() if name != "attention_mask"}

    monkeypatch.setattr(VideoPandaForConditionalGeneration, "prepare_inputs_for_generation", unmasked)
    check = check_greedy(converted, VideoPandaConfig.from_pretrained(converted), 1000)
    assert check.status == "failed"
    assert all("in a batch" in reason for reason in check.reasons)


def test_a_processor_that_does_not_fit_the_model(ours):
    file = ours / "processor_config.json"
    file.write_text(file.read_text().replace('"row_tokens": true', '"row_tokens": false'))
    (reason,) = failures(verify(ours))["greedy"]
    assert "<video> tokens but the videos give" in reason
    file.unlink()
    assert "processor and model do not answer" in failures(verify(ours))["greedy"][0]


def test_near_ties_are_no_failures():
    one = GreedyAnswer(torch.tensor([1, 2, 3]), torch.tensor([1.0, 1e-5, 1.0]))
    assert first_difference(one, torch.tensor([1, 2, 3]), 1e-3) is None
    assert first_difference(one, torch.tensor([1, 9, 9]), 1e-3) is None
    assert first_difference(one, torch.tensor([1, 9, 9]), 1e-6) == 1
    assert first_difference(one, torch.tensor([1, 2, 9]), 1e-3) == 2


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["videopanda", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


def test_exit_codes_and_channels(ours, official, run, light):
    code, out, err = run(ours, "--against", official)
    assert (code, err) == (0, "")
    for words in ("vision modules", "138,738", "130 tensors equal official bit for bit"):
        assert words in out
    flip_a_bit(ours)
    code, out, _ = run(ours)
    assert code == 1
    assert "model.projector.down.weight differs" in out
    code, out, err = run(ours, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["passed"] is False
    assert [check["name"] for check in report["checks"] if check["status"] == "failed"] == ["checksums"]
    code, out, err = run(ours, "--record")
    assert code == 0
    assert f"checksums recorded: {ours / 'checksums.json'}" in out
    assert run(ours)[0] == 0


def test_bad_input_is_one_line(ours, official, tmp_path, run):
    (tmp_path / "empty").mkdir()
    file = ours / "model.safetensors"
    for arguments, reason in [
        ((tmp_path / "none",), "no model folder at"),
        ((tmp_path / "empty",), "is not a videopanda checkpoint: it has no config.json"),
        ((official,), f"run `videopanda convert {official} OUT`"),
        ((ours, "--against", tmp_path / "none"), "no such file or folder"),
        ((ours, "--against", ours), "needs no conversion"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    code, out, err = run(ours)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "model.safetensors is damaged or truncated" in err
    file.write_bytes(whole)
    (ours / "config.json").write_text('{"model_type": "llava"}')
    code, out, err = run(ours)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is a plain llava model" in err
