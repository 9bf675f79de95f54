"""vLLM's Transformers backend gives our greedy tokens. `make test-vllm` runs this; `make test` does not.

The folder is exported here and served in an environment that has vLLM and not this package.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from media import write_video
from tiny import clip, randomize, tiny_config, tiny_processor
from videopanda.checkpoints.export import export
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.models.videopanda import VideoPandaForConditionalGeneration

pytestmark = pytest.mark.timeout(900)  # vLLM takes its time to start
PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
NEW_TOKENS = 16
FRAMES = {
    "wide": clip(8, 30, 60, seed=1),
    "tall": clip(8, 60, 25, seed=2),
    "short": clip(3, 40, 40, seed=3),
    "long": clip(16, 30, 40, seed=4),
    "whole": clip(40, 30, 50, seed=7),
    "picture": clip(1, 40, 30, seed=5)[0],
    "other picture": clip(1, 20, 50, seed=6)[0],
}


def request(question, videos, images=(), sample=False):
    """`videos` are names with seconds; with `sample` the processor still has to choose frames."""
    return {"question": question, "videos": videos, "images": list(images), "sample": sample}


REQUESTS = [
    request("What moves?", {"wide": 8.0}),
    request("What moves?", {"tall": 2.5}),
    request("What colour is the circle?", {"short": 1.0}),
    request("Is it red?", {"long": 30.0}),
    request("Which one is longer?", {"long": 30.0, "short": 1.0}),
    request("What happens?", {"whole": 4.0}, sample=True),
    request("Hello?", {}),
]
WITH_IMAGES = [
    request("What is it?", {}, ["picture"]),
    request("What is it?", {}, ["other picture", "picture"]),
    request("Is the picture from the clip?", {"wide": 8.0}, ["picture"]),
]


class Clip:
    """Decoded frames with their duration."""

    def __init__(self, frames, duration):
        self.frames, self.duration = frames, duration


def tiny(text):
    """A random model whose language model has heads of 64 channels: vLLM takes certain sizes only."""
    config = tiny_config(text=text)
    config.text_config.head_dim, config.text_config.initializer_range = 64, 0.2
    config.text_config.hidden_size = 128
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 2, 1
    torch.manual_seed(0)
    model = VideoPandaForConditionalGeneration(config)
    randomize(model.model.stab)
    randomize(model.model.projector, 1, scale=0.1)
    return model.eval(), tiny_processor(frame_sampling="released")


def prompt_of(processor, request):
    parts = [{"type": "video"}] * len(request["videos"]) + [{"type": "image"}] * len(request["images"])
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": request["question"]}]}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def tokens(model, inputs):
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
    start = inputs["input_ids"].shape[1]
    return {"prompt": ids[:start], "reply": ids[start:]}


def ours(model, processor, request):
    seconds = request["videos"]
    videos = [FRAMES[name] if request["sample"] else Clip(FRAMES[name], seconds[name]) for name in seconds]
    known = [{"duration": seconds[name], "fps": len(FRAMES[name]) / seconds[name]} for name in seconds]
    images = [FRAMES[name] for name in request["images"]]
    inputs = processor(text=prompt_of(processor, request), videos=videos, images=images, video_metadata=known)
    return tokens(model, inputs)


def ours_about_a_file(model, processor, file, question):
    content = [{"type": "video", "path": file}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return tokens(model, inputs)


def theirs(folder, processor, requests, work):
    asked = [entry if "file" in entry else {**entry, "prompt": prompt_of(processor, entry)} for entry in requests]
    (work / "requests.json").write_text(json.dumps(asked))
    np.savez(work / "frames.npz", **FRAMES)
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("answer.py"), folder, "requests.json", "frames.npz", "replies.json"],
        cwd=work,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "home"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "2",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((work / "replies.json").read_text())


@pytest.mark.parametrize("text", ["llama", "qwen3"])
def test_released_preset(text, tmp_path):
    model, processor = tiny(text)
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    export(tmp_path / "plain", tmp_path / "model")
    file = str(write_video(tmp_path / "clip.mp4", range(40), fps=10))
    requests = [*REQUESTS, *WITH_IMAGES, {"question": "What moves?", "file": file}]
    expected = [ours(model, processor, request) for request in REQUESTS + WITH_IMAGES]
    expected.append(ours_about_a_file(model, processor, file, "What moves?"))
    assert len({tuple(one["reply"]) for one in expected}) > len(expected) // 2  # the answers depend on the input
    assert theirs(tmp_path / "model", processor, requests, tmp_path) == expected


def test_bundled_model(tmp_path):
    model, processor = load(None, device="cpu")
    export(BUNDLED_MODEL, tmp_path / "model")
    expected = [ours(model, processor, request) for request in REQUESTS]
    assert theirs(tmp_path / "model", processor, REQUESTS, tmp_path) == expected
