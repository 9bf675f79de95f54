"""A second family goes through every verb without an edit outside of its folder, and nothing there names a family."""

import base64
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM, LlamaConfig

import videopanda
from command import run
from tiny import tiny_tokenizer
from videopanda import _auto, models
from videopanda.data.worlds.scenes.make import make
from videopanda.inference.answer import ask
from videopanda.inference.engine import Limits
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.load import load
from videopanda.serving.api import ServerSettings, create_app

PACKAGE = Path(videopanda.__file__).parent


@pytest.fixture(scope="module")
def toy():
    """The folder tests/families/toy as if it lay in the package."""
    models.__path__.append(str(Path(__file__).parent / "families"))
    for name in set(sys.modules) & set(_auto._AUTO):
        _auto._register(sys.modules[name])
    yield "toy"
    models.__path__.pop()


@pytest.fixture(scope="module")
def world(toy, tmp_path_factory):
    """A language model, three clips with questions, and what `init` and `train` make of them."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(text).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    make(folder / "scenes", 3, 0, "train")
    given = ("--backbone", folder / "text", "--chat-template", "vicuna", "--family", toy, "--preset", "wide")
    code, out, err = run("init", folder / "fresh", *given, "--set", "patch.patch_size=32", "--set", "patch.bias=no")
    assert (code, "patches, fresh" in out) == (0, True), err
    settings = ("data=" + str(folder / "scenes" / "annotations.json"), "max_steps=2", "num_frames=2", "batch_size=2")
    settings += ("distill_weight=0", "dtype=float32", "global_batch=0", "strategy=ddp", "gradient_checkpointing=no")
    sets = [word for setting in (*settings, "lr.projector=0", "data_share=1") for word in ("--set", setting)]
    code, out, err = run("train", "prealign", "--model", folder / "fresh", "--output", folder / "trained", *sets)
    assert code == 0, err
    return folder


def test_a_new_family_is_made_by_its_presets_and_fields(world):
    config = json.loads((world / "fresh" / "config.json").read_text())
    assert (config["model_type"], config["patch_config"]["hidden_size"]) == ("toy", 48)
    assert (config["patch_config"]["patch_size"], config["patch_config"]["bias"]) == (32, False)
    code, _, err = run("init", world / "other", "--backbone", world / "text", "--family", "toyz")
    assert (code, "unknown family 'toyz': did you mean 'toy'?" in err) == (2, True)
    more = ("--family", "toy", "--set", "patch.path_size=8")
    code, _, err = run("init", world / "other", "--backbone", world / "text", *more)
    assert (code, "unknown setting 'patch.path_size': did you mean 'patch.patch_size'?" in err) == (2, True)


def test_it_is_trained_part_by_part(world):
    before, after = (load(world / name)[0].state_dict() for name in ("fresh", "trained"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.patches.weight"}  # the projector's rate is 0, and prealign freezes the language model


def test_it_answers_alike_by_library_predictions_and_server(world):
    clip = next((world / "scenes").rglob("*.mp4"))
    model, processor = load(world / "trained", device="cpu")
    (answer,) = ask(model, processor, clip, ["What moves?"], num_frames=3, max_new_tokens=6)
    assert answer.visual_tokens == 3 * 4
    code, out, err = run(
        "answer", clip, "What moves?", "--model", world / "trained", "--num-frames", 3, "--max-new-tokens", 6, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["answer"] == answer.answer
    predicted = world / "predicted.jsonl"
    given = ("--model", world / "trained", "--output", predicted, "--num-frames", 3, "--max-new-tokens", 6)
    code, out, err = run("evaluate", "predict", "scenes", world / "scenes", *given)
    assert code == 0, err
    rows = [json.loads(line) for line in predicted.read_text().splitlines()]
    assert sum(row.get("prediction") is not None for row in rows) >= 3
    engine = EngineThread(model, processor, Limits(max_queue=8, cache_bytes=1 << 20))
    with TestClient(create_app(engine, ServerSettings("toy", world / "files"))) as client:
        data = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
        content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": "What moves?"}]
        body = {"model": "toy", "messages": [{"role": "user", "content": content}], "max_tokens": 6}
        reply = client.post("/v1/chat/completions", json={**body, "mm_processor_kwargs": {"num_frames": 3}})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == answer.answer


def test_it_is_planned_verified_and_exported(world, tmp_path):
    code, out, err = run("plan", "--model", world / "trained", "--num-frames", 5, "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["visual_tokens"] == 5 * 4
    fit = ("--backbone", "qwen2.5-0.5b", "--family", "toy", "--fit", "3GiB", "--json", "--device", "cpu")
    code, out, err = run("plan", *fit)
    assert code == 0, err
    code, out, err = run("verify", world / "trained", "--json")
    checks = {check["name"]: check["status"] for check in json.loads(out)["checks"]}
    assert code == 0, out
    assert (checks["parameters"], checks["greedy"]) == ("passed", "passed")
    code, _, err = run("export", world / "trained", tmp_path / "out")
    assert code == 0, err
    script = (
        "import sys, numpy as np; from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "options = {'trust_remote_code': True}\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], **options)\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], **options)\n"
        "inputs = processor(text='<video>What?', videos=[np.zeros((2, 30, 40, 3), np.uint8)])\n"
        "print(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, -5:].tolist())\n"
        "print('videopanda' in sys.modules)"
    )
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, tmp_path / "out"], capture_output=True, text=True, check=False, env=home
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model, processor = load(world / "trained", device="cpu")
    inputs = processor(text="<video>What?", videos=[np.zeros((2, 30, 40, 3), np.uint8)])
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, -5:].tolist()
    assert done.stdout.splitlines()[-2:] == [str(expected), "False"]


# Published numbers name models; the conversion of official checkpoints is made for one family, whose folder says how.
NAMES_OTHERS = {"bench/elva.py", "evaluation/reporting/published.py", "training/guidance.py"} | {
    f"checkpoints/{name}.py" for name in ("convert", "settings", "tensor_plan")
}


def test_no_file_outside_models_names_a_family():
    families = models.folders()
    names = [name for family in families for name in import_module(f"videopanda.models.{family}").__all__]
    classes = "|".join(name for name in names if name[0].isupper())
    homes = "|".join(families)
    words = r"\bSTAB\b|\bElva|\bELVA\b|stab_config|\.stab\b|model_type [=!]="
    pattern = re.compile(rf"\b({classes})\b|models\.({homes})\b|{words}")
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("models/") and name not in NAMES_OTHERS:
            text = path.read_text(encoding="utf-8")
            lines = [line.strip() for line in text.splitlines() if pattern.search(line)]
            if lines:
                found[name] = lines
    assert found == {}
