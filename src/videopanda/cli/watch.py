"""The verb `videopanda watch`. Heavy imports are inside the function."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from typer import Argument, Option

from videopanda.cli.checks import duration, refuse, require_checkpoint
from videopanda.cli.options import Device, MaxNewTokens, Model, load_model


def watch_verb(
    source: Annotated[
        str, Argument(help="File, folder of images, - for stdin, FIFO, http(s) or rtsp URL, camera (/dev/video0).")
    ],
    every: Annotated[tuple[str, str], Option(metavar="TIME QUESTION", help="Ask this question at this interval.")] = (
        "",
        "",
    ),
    when: Annotated[
        list[str] | None,
        Option(metavar="QUESTION", help="Report when the answer changes to yes, and back to no; may be repeated."),
    ] = None,
    check: Annotated[
        float | None, Option(metavar="TIME", help="Interval at which --when is checked. Default: 1s.", parser=duration)
    ] = None,
    model: Model = None,
    fps: Annotated[float, Option(metavar="X", min=0.001, help="Frames per second to read.")] = 1.0,
    max_visual_tokens: Annotated[
        int | None, Option(metavar="N", min=1, help="Merge older tokens beyond N to limit memory.")
    ] = None,
    window: Annotated[
        int | None, Option(metavar="N", min=0, help="Number of latest steps whose tokens are never merged. Default: 4.")
    ] = None,
    last_frames: Annotated[
        int | None, Option(metavar="N", min=1, help="Keep only the last N frames, with no memory of earlier ones.")
    ] = None,
    follow: Annotated[bool, Option("--follow", help="At the end of the file, wait for more to be written.")] = False,
    until: Annotated[
        float | None, Option(metavar="TIME", help="Stop at this time of the stream.", parser=duration)
    ] = None,
    device: Device = None,
    max_new_tokens: MaxNewTokens = 64,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object per event on stdout.")] = False,
) -> None:
    """Watch a video that may never end: answers with timestamps, in constant memory.

    Example:  videopanda watch lobby.mp4 --every 5s "What happens?"

    An alarm:  videopanda watch rtsp://camera/live --when "Is there a red circle?" --json
    """
    model = require_checkpoint(model)
    if not every[0] and not when:
        raise ValueError('nothing to ask: add --every 5s "What happens?" or --when "Is there a red circle?"')
    if check and not when:
        raise ValueError("--check requires --when")
    memory = {"max_visual_tokens": max_visual_tokens, "window": window}
    if last_frames is not None:
        refuse("--last-frames keeps no earlier frames", **memory)
    if every[0] and not every[1].strip():
        raise ValueError("the question of --every is empty")
    if not all(question.strip() for question in when or []):
        raise ValueError("the question of --when is empty")
    between = duration(every[0]) if every[0] else None
    if not any((source == "-", "://" in source, Path(source).exists())):
        raise FileNotFoundError(f"no video at {source}")
    from videopanda.inference.session import VideoSession
    from videopanda.inference.watching import Event, watch
    from videopanda.video.stream import Note, stream_video

    network, processor = load_model(model, device)
    rules = processor.video_processor
    if last_frames is None and (network.needs_total_frames or not network.chunk_frames):
        refuse("this model looks at the last frames only", **memory)
        last_frames = rules.num_frames
        print(
            f"videopanda: this model can only look at a whole clip: watching the last {last_frames} frames, "
            "with no memory of earlier ones",
            file=sys.stderr,
        )
    session = VideoSession(
        network,
        processor,
        max_visual_tokens=max_visual_tokens,
        window=4 if window is None else window,
        last_frames=last_frames or 0,
        max_new_tokens=max_new_tokens,
    )
    # The user named this URL, so its host is allowed, and no other.
    hosts = [urlsplit(source).hostname or ""] if "://" in source else []

    def show(event: Event) -> None:
        if as_json:
            print(json.dumps(asdict(event)), flush=True)
        elif event.kind == "note":
            print(f"videopanda: at {_clock(event.time)}: {event.text}", file=sys.stderr, flush=True)
        elif event.kind == "answer":
            print(f"[{_clock(event.time)}] {event.text}", flush=True)
        else:
            print(f"[{_clock(event.time)}] {event.kind}: {event.question}", flush=True)

    def tell(note: Note) -> None:
        # At once: after a stall or an end, no frame may follow.
        show(Event(note.time, "note", "", f"{note.kind}: {note.text}", note.time, session.num_frames, 0))

    reading: dict[str, Any] = {"hosts": hosts, "background": rules.background, "on_note": tell}
    asking: dict[str, Any] = {"every": between, "question": every[1], "conditions": when or (), "until": until}
    try:
        with stream_video(source, fps=fps, follow=follow, **reading) as stream:
            for event in watch(session, stream, check_every=check or 1.0, **asking):
                show(event)
    finally:  # also after Ctrl-C, the usual end of a stream, and after the loss of the source
        log = session.log
        if as_json:
            print(json.dumps({"kind": "log", **asdict(log)}), flush=True)
        else:
            lost = f", {log.dropped:,} frames no longer in memory" if log.dropped else ""
            print(f"videopanda: {log.frames:,} frames in {len(log.steps)} steps{lost}", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, tenths = divmod(round(10 * seconds), 600)  # so that 59.96 s are 1:00.0
    return f"{minutes // 60}:{minutes % 60:02}:{tenths / 10:04.1f}"
