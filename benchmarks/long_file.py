"""Memory and speed of `answer --fps 1` on 3 minutes and on 2 hours of video, and of 2 hours as a stream.

    python benchmarks/long_file.py --output benchmarks/long-file.json

Writes two files of small frames (a square that moves, and stands still most of the time), runs the command on each,
and records its peak memory and where the time went. What it answers does not matter: nano-long knows other clips.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = 96, 72
FPS = 5
SECONDS = {"3 minutes": 180, "2 hours": 7200}
QUESTION = "How many objects are there in total?"
# The same as a stream, frame by frame.
STREAM = """
import json, resource, sys, time
import numpy as np
import psutil
import videopanda
from videopanda.inference.session import VideoSession
model, processor = videopanda.load(sys.argv[2], "cpu")
session = VideoSession(model, processor, max_visual_tokens=2048, total_frames=7200)
this, spent, memory, kept = psutil.Process(), [], [], []
for second in range(7200):
    frame = np.full((72, 96, 3), 128, np.uint8)
    place = int(min(second % 60, 5) / 5 * 60)
    frame[20:40, place : place + 20] = (200, 30 + second // 60 % 200, 30)
    began = time.process_time()
    session.push(frame, float(second))
    spent.append(time.process_time() - began)
    if second % 60 == 59:
        memory.append(this.memory_info().rss / 2**20)
        kept.append(session.num_bytes / 2**20)
answer = session.ask(sys.argv[3])
tenth, chunks = len(spent) // 10, np.array(spent).reshape(-1, 4).sum(1) / 4
last = np.polyfit(np.arange(60), memory[-60:], 1)[0] * 60
print(json.dumps({
    "frames": session.num_frames, "visual_tokens": answer.visual_tokens,
    "cpu_ms_per_frame": 1000 * sum(spent) / len(spent),
    "frames_per_cpu_second": len(spent) / sum(spent),
    "median_of_last_tenth_over_first": float(np.median(chunks[-tenth // 4:]) / np.median(chunks[: tenth // 4])),
    "median_of_last_tenth_over_second": float(
        np.median(chunks[-tenth // 4:]) / np.median(chunks[tenth // 4 : tenth // 2])),
    "rss_mib_after_1_minute_1_hour_2_hours": [round(memory[i], 1) for i in (0, 59, 119)],
    "rss_mib_per_hour_in_the_last_hour": float(last),
    "kept_mib_after_1_hour_2_hours": [round(kept[i], 3) for i in (59, 119)],
}))
"""


def write(path: Path, seconds: int) -> None:
    """A square on gray that moves for 5 seconds of every minute."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "30", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(seconds * FPS):
            second = number / FPS
            place = int(min(second % 60, 5) / 5 * 60)
            frame = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
            frame[20:40, place : place + 20] = (200, 30 + int(second // 60) % 200, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def answer(path: Path, model: str) -> dict[str, Any]:
    """Run the command in a process of its own; its figures."""
    options = ["--fps", "1", "--model", model, "--max-new-tokens", "8", "--json"]
    command = [sys.executable, "-m", "videopanda", "answer", *options, str(path), QUESTION]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return {
        "frames": len(told["frame_times"]),
        "visual_tokens": told["visual_tokens"],
        "steps": len(told["selection"]),
        "seconds": told["timings"],
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-long")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("long-file.json"))
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in SECONDS.items():
            path = Path(folder, f"{seconds}.mp4")
            write(path, seconds)
            load, began = os.getloadavg()[0], time.perf_counter()
            figures = answer(path, options.model)
            work = figures["seconds"]["preprocess"] + figures["seconds"]["generate"]
            figures |= {
                "wall_seconds": time.perf_counter() - began,
                "times_real_time_without_decoding": seconds / work,
                "share_of_decoding": figures["seconds"]["decode"] / (figures["seconds"]["decode"] + work),
                "load_average": load,
            }
            results[name] = figures
        command = [sys.executable, "-c", STREAM, "", options.model, QUESTION]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["2 hours as a stream"] = json.loads(done.stdout.splitlines()[-1])
    short, long = (results[name]["peak_mib"] for name in SECONDS)
    record = {
        "command": f"python benchmarks/long_file.py --model {options.model}",
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "date": date.today().isoformat(),
        "source": f"{SIZE[0]}x{SIZE[1]} pixels, {FPS} fps, H.264; 1 frame per second is encoded",
        "results": results,
        "peak_2_hours_over_3_minutes": long / short,
    }
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
