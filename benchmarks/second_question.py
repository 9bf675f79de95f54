"""Time to the first token of a first and of a second question about one clip, for nano and a random mid-size model.

    python benchmarks/second_question.py [--rounds 5] [--models nano,middle] [--clip FILE] > second-question.json

First: the file is read, encoded, read by the language model, and one token comes. Second: the chat has keys and values
of the clip; only the question is read. The ratio is taken within a round; the interval is the bootstrap's.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from videopanda.bench.timing import interval, machine, ratios
from videopanda.inference.answer import Chat
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.models.families import model_class, processor_class
from videopanda.plan.backbones import config_of
from videopanda.video.read import read_video

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ("What shape is the red object?", "How many objects are there in total?")
MIDDLE = "qwen2.5-0.5b"


def middle():
    """The released vision part in front of a random language model of 494M parameters, in float32."""
    torch.manual_seed(0)
    config = config_of(MIDDLE)
    processor = processor_class(config).for_config(config, load(None, "cpu")[1].tokenizer)
    config.video_token_id, config.image_token_id = processor.video_token_id, processor.image_token_id
    model = model_class(config)(config).eval()
    model.generation_config.suppress_tokens = None
    return model, processor


def seconds(model, processor, clip):
    """Of the first and of the second question."""
    began = time.perf_counter()
    chat = Chat(model, processor, clip, max_new_tokens=1)
    chat.ask_each(QUESTIONS[:1])
    asked = time.perf_counter()
    chat.ask_each(QUESTIONS[1:])
    return asked - began, time.perf_counter() - asked


def main():
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="nano,middle")
    parser.add_argument("--clip", type=Path, default=CLIP)
    arguments = parser.parse_args()
    video = read_video(arguments.clip, num_frames=1)
    report = {
        "machine": machine(),
        "clip": {"width": video.width, "height": video.height, "seconds": round(video.duration, 2)},
        "rounds": arguments.rounds,
        "models": {},
    }
    builders = {"nano": lambda: load(None, "cpu"), "middle": middle}
    for name in arguments.models.split(","):
        model, processor = builders[name]()
        seconds(model, processor, arguments.clip)  # warms up
        rounds = [seconds(model, processor, arguments.clip) for _ in range(arguments.rounds)]
        report["models"][name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "visual_tokens": Chat(model, processor, arguments.clip).clip.num_tokens,
            "first_seconds": interval([first for first, _ in rounds]),
            "second_seconds": interval([second for _, second in rounds]),
            "second_over_first": ratios(*zip(*((second, first) for first, second in rounds))),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
