"""Runs in the environment of vLLM: greedy tokens for prompts about videos and images, through `LLM.generate`.

    python answer.py FOLDER REQUESTS.json FRAMES.npz OUT.json

A request is {"prompt", "videos": {name in FRAMES: seconds}, "sample": whether frames are still to be chosen,
"images": [name in FRAMES]}, or {"question", "file"} for `LLM.chat` about a video file.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vllm import LLM, SamplingParams

NEW_TOKENS = 16


def video(frames: np.ndarray, duration: float, sample: bool) -> tuple[np.ndarray, dict]:
    """Frames with what vLLM knows of a video that it has decoded itself."""
    return frames, {
        "total_num_frames": len(frames),
        "fps": len(frames) / duration,
        "duration": duration,
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
        "do_sample_frames": sample,
    }


def prompt(request: dict, arrays: dict) -> dict:
    """Input of `LLM.generate`."""
    data = {
        "video": [video(arrays[name], seconds, request["sample"]) for name, seconds in request["videos"].items()],
        "image": [Image.fromarray(arrays[name]) for name in request["images"]],
    }
    return {"prompt": request["prompt"], "multi_modal_data": {k: v for k, v in data.items() if v}}


def message(request: dict) -> list[dict]:
    """Input of `LLM.chat`, in the form that the server takes too."""
    parts = [{"type": "video_url", "video_url": {"url": f"file://{request['file']}"}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": request["question"]}]}]


def main(folder: str, requests: str, frames: str, out: str) -> None:
    arrays = np.load(frames)
    engine = LLM(
        folder,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=512,  # fewer than all prompts together: they are cut, also within a video
        limit_mm_per_prompt={"video": 2, "image": 2},
        media_io_kwargs={"video": {"num_frames": -1}},  # the processor chooses frames, not vLLM
        allowed_local_media_path="/",
        disable_log_stats=True,
    )
    config = engine.llm_engine.model_config.hf_config
    settings = SamplingParams(
        temperature=0.0,
        max_tokens=NEW_TOKENS,
        logit_bias={config.video_token_id: -100.0, config.image_token_id: -100.0},  # ours never says them
    )
    all_requests = json.loads(Path(requests).read_text())
    asked = [request for request in all_requests if "file" not in request]
    replies = engine.generate([prompt(request, arrays) for request in asked], settings)
    chats = [message(request) for request in all_requests if "file" in request]
    if chats:
        replies += engine.chat(chats, settings)
    tokens = [{"prompt": list(one.prompt_token_ids), "reply": list(one.outputs[0].token_ids)} for one in replies]
    Path(out).write_text(json.dumps(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
