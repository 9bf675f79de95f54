"""Runs in the environment of vLLM: greedy tokens for prompts about videos and images, through `LLM.generate`.

    python answer.py FOLDER REQUESTS.json FRAMES.npz OUT.json

A request is {"prompt", "videos": {name in FRAMES: seconds}, "sample": whether frames are still to be chosen,
"images": [name in FRAMES]}.
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
        disable_log_stats=True,
    )
    config = engine.llm_engine.model_config.hf_config
    prompts = []
    for request in json.loads(Path(requests).read_text()):
        data = {
            "video": [video(arrays[name], seconds, request["sample"]) for name, seconds in request["videos"].items()],
            "image": [Image.fromarray(arrays[name]) for name in request["images"]],
        }
        prompts.append({"prompt": request["prompt"], "multi_modal_data": {k: v for k, v in data.items() if v}})
    settings = SamplingParams(
        temperature=0.0,
        max_tokens=NEW_TOKENS,
        logit_bias={config.video_token_id: -100.0, config.image_token_id: -100.0},  # ours never says them
    )
    replies = [
        {"prompt": list(one.prompt_token_ids), "reply": list(one.outputs[0].token_ids)}
        for one in engine.generate(prompts, settings)
    ]
    Path(out).write_text(json.dumps(replies))


if __name__ == "__main__":
    main(*sys.argv[1:])
