"""Memory and speed of `answer --fps 1 --max-visual-tokens 2048` on 3 minutes and on 2 hours of video.

    videopanda init --model src/videopanda/assets/nano --set text.max_position_embeddings=4096 \\
        --set compression.kind=mamba out/long
    python benchmarks/long_file.py --model out/long --output benchmarks/long.json

The bundled model has a context of 2,048 tokens; what it answers here does not matter.
Writes two files of small frames (a square that moves, and stands still most of the time), asks about each in a process
of its own, and records its peak memory and where the time went. The files are for the measurement only.
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

import av
import numpy as np

SIZE = 96, 72
FPS = 5
SECONDS = {"3 minutes": 180, "2 hours": 7200}
QUESTION = "How many objects are there in total?"
# In the process that is measured: one answer, then what it cost.
WORK = """
import json, resource, sys
import videopanda
from videopanda.inference.stream_encoder import encode_long
model, processor = videopanda.load(sys.argv[2] or None, "cpu")
used = resource.getrusage(resource.RUSAGE_SELF)
clip, seconds, log = encode_long(model, processor, sys.argv[1], fps=1, max_visual_tokens=2048)
chat = videopanda.Chat(model, processor, clip, max_new_tokens=8)
answer = chat.ask(sys.argv[3])
now = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "frames": log.frames, "visual_tokens": clip.num_tokens, "steps": len(log.steps), "seconds": seconds,
    "generate_seconds": answer.timings["generate"], "frames_in_steps": sum(n for *_, n in log.steps),
    "cpu_seconds": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, "peak_mib": now.ru_maxrss / 1024,
}))
"""

# The same as a stream, frame by frame.
STREAM = """
import json, resource, sys, time
import numpy as np
import psutil
import videopanda
from videopanda.inference.session import VideoSession
model, processor = videopanda.load(sys.argv[2] or None, "cpu")
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


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder; default: the bundled model")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("long-file.json"))
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in SECONDS.items():
            path = Path(folder, f"{seconds}.mp4")
            write(path, seconds)
            load, began = os.getloadavg()[0], time.perf_counter()
            command = [sys.executable, "-c", WORK, str(path), options.model, QUESTION]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            parts = figures["seconds"]
            work = parts["preprocess"] + parts["encode"] + figures["generate_seconds"]
            figures |= {
                "wall_seconds": time.perf_counter() - began,
                "times_real_time_without_decoding": seconds / work,
                "share_of_decoding": parts["decode"] / (parts["decode"] + work),
                "load_average": load,
            }
            results[name] = figures
        command = [sys.executable, "-c", STREAM, "", options.model, QUESTION]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["2 hours as a stream"] = json.loads(done.stdout.splitlines()[-1])
    short, long = (results[name]["peak_mib"] for name in SECONDS)
    record = {
        "command": "python benchmarks/long_file.py" + (f" --model {options.model}" if options.model else ""),
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
