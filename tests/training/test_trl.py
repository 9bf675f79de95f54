"""Protects DPO and GRPO of TRL on videos, by the programs of docs/finetuning.md."""

import json
import subprocess
import sys
from math import log
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

from media import paint_number, write_video
from test_readme import blocks
from tiny import tiny_model, tiny_processor

pytest.importorskip("trl", reason="TRL is not installed here: pip install trl datasets")

DOCUMENT = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
WORDS = "happy", "sad"


@pytest.fixture
def run(tmp_path):
    """Runs the program of the document that uses a trainer, with the model and the clips that it asks for."""
    tiny_model().save_pretrained(tmp_path / "out" / "mine")
    tiny_processor().save_pretrained(tmp_path / "out" / "mine")
    for number, name in zip((0, 20000), WORDS):
        (tmp_path / "clips" / name).mkdir(parents=True)
        write_video(tmp_path / "clips" / name / "anna.mp4", range(number, number + 10), fps=5)
        Image.fromarray(paint_number(number)).save(tmp_path / "clips" / name / "anna.png")

    def run_program(trainer: str, changes: dict[str, str] | None = None) -> list[dict]:
        """The log of the trainer. In a process of its own: TRL takes the folder `tests/vllm` for an installed vLLM."""
        (code,) = (block for block in blocks(DOCUMENT, "python") if f", {trainer}\n" in block)
        for old, new in (changes or {}).items():
            assert old in code
            code = code.replace(old, new)
        (tmp_path / "program.py").write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (state,) = (tmp_path / "out").glob("*/checkpoint-*/trainer_state.json")
        return json.loads(state.read_text())["log_history"]

    return run_program


def log_probability(folder: Path, visual: dict, answer: str) -> float:
    """That of an answer, from the model alone."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForMultimodalLM.from_pretrained(folder)
    question = {"role": "user", "content": [visual, {"type": "text", "text": "Which word is signed?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    asked = processor.apply_chat_template([question], add_generation_prompt=True, **options)["input_ids"].shape[1]
    inputs = processor.apply_chat_template([question, said], **options)
    with torch.no_grad():
        words = model(**inputs).logits[0, asked - 1 : -1].log_softmax(1)
    return words.gather(1, inputs["input_ids"][0, asked:, None]).sum().item()


IMAGES = {
    '{"type": "video", "video": video}': '{"type": "image"}',
    '"video": video}': '"images": [video]}',
    "    data_collator=VideoPreferences(processor.tokenizer.pad_token_id),\n": "",
    "anna.mp4": "anna.png",
}


@pytest.mark.parametrize(("kind", "changes"), [("video", {}), ("image", IMAGES)])
def test_dpo(run, tmp_path, kind, changes):
    """Before the first step the policy is its reference; then the better answers gain."""
    logged = run("DPOTrainer", changes)
    files = {name: tmp_path / "clips" / name / ("anna.mp4" if kind == "video" else "anna.png") for name in WORDS}
    for key, answers in (("logps/chosen", ("happy", "sad")), ("logps/rejected", ("sad", "happy"))):
        alone = [
            log_probability(tmp_path / "out" / "mine", {"type": kind, kind: str(files[name])}, answer)
            for name, answer in zip(WORDS, answers)
        ]
        assert logged[0][key] == pytest.approx(sum(alone) / 2, abs=1e-4)
        assert abs(alone[0] - alone[1]) > 0.1
    assert logged[0]["loss"] == pytest.approx(log(2), abs=1e-5)
    losses = [entry["loss"] for entry in logged]
    assert losses == sorted(losses, reverse=True)
    assert logged[-1]["rewards/accuracies"] == 1


def test_grpo(run):
    """Before the first step the answers are as probable as when they were given, each with its own video."""
    logged = run("GRPOTrainer", {'"out/grpo",': '"out/grpo", num_iterations=2,'})
    assert logged[0]["reward_std"] > 0
    assert abs(logged[0]["loss"]) < 1e-5
    assert logged[0]["clip_ratio/region_mean"] == 0
    assert logged[0]["grad_norm"] > 0
    assert abs(logged[1]["loss"]) > 1e-5
