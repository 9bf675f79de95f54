"""How fast and how reliably `watch --when` tells that something appeared: streams of the long world.

    python benchmarks/when_alarms.py --output benchmarks/when-alarms.json

Each stream is one minute in which shapes come and go. The condition names the colour and shape of one that does, as in
"Is there a red circle?" (squares are left out, since the lamp in the corner is one). It is asked every second about
the last frames, as `videopanda watch` does with the bundled model, and changes after two equal answers in a row. Delay:
from the moment at which the shape appears (ends) to the second at which that is told. An alarm is false if nothing of
that colour and shape was visible in the frames that were looked at.
"""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from videopanda.data.worlds.long.make import pictures
from videopanda.data.worlds.long.world import make_story
from videopanda.evaluation.scenes_report import wilson
from videopanda.inference.load import load
from videopanda.inference.session import VideoSession
from videopanda.inference.watching import watch

SEED = 21


def stream(index: int) -> tuple[Any, str, list[tuple[float, float]]]:
    """A story, the condition, and when it holds."""
    story = make_story(SEED, "test", index, minutes=1)
    kind = next(visit.kind for visit in story.visits if visit.kind.shape != "square")
    spans = [
        (visit.start, visit.end)
        for visit in story.visits
        if (visit.kind.colour, visit.kind.shape) == (kind.colour, kind.shape)
    ]
    return story, f"Is there a {kind.colour} {kind.shape}?", spans


def main() -> None:
    """Watch all streams and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--last-frames", type=int, default=4)
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load(options.model, "cpu")
    appeared, vanished, false, told, shown, began = [], [], 0, 0, 0, time.perf_counter()
    streams = 0
    for index in range(options.num):
        story, question, spans = stream(index)
        seconds = [float(t) for t in range(int(story.seconds))]
        frames = (SimpleNamespace(image=image, time=t) for t, image in zip(seconds, pictures(story, seconds)))
        session = VideoSession(model, processor, last_frames=options.last_frames, max_new_tokens=8)
        events = list(watch(session, frames, conditions=[question]))
        starts = [event for event in events if event.kind == "began"]
        ends = [event for event in events if event.kind == "ended"]
        streams, shown, told = streams + 1, shown + len(spans), told + len(starts)
        for event in starts:
            looked_at = event.time - options.last_frames + 1, event.time
            false += not any(start <= looked_at[1] and end > looked_at[0] for start, end in spans)
        for start, end in spans:
            first = next((event.seen for event in starts if start <= event.seen <= end + options.last_frames), None)
            if first is not None:
                appeared.append(first - start)
                last = next((event.seen for event in ends if event.seen >= end), None)
                if last is not None:
                    vanished.append(last - end)
    low, high = wilson(len(appeared), shown)
    record = {
        "command": f"python benchmarks/when_alarms.py --model {options.model} --last-frames {options.last_frames} "
        f"--num {options.num}",
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, shared with other work; one thread",
        "date": date.today().isoformat(),
        "streams": streams,
        "hours": streams / 60,
        "visits": shown,
        "noticed": {"share": round(len(appeared) / shown, 3), "ci95": [round(low, 3), round(high, 3)]},
        "delay_seconds": {
            "median": round(statistics.median(appeared), 2) if appeared else None,
            "worst": round(max(appeared), 2) if appeared else None,
        },
        "delay_of_the_end_seconds": {"median": round(statistics.median(vanished), 2) if vanished else None},
        "alarms": told,
        "false_alarms": false,
        "seconds_per_check": round((time.perf_counter() - began) / streams / 60, 3),
    }
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
