"""The verb `videopanda find`. Heavy imports are inside the function."""

from typing import Annotated, Any

from typer import Argument, Option

from videopanda.cli.answer import AllowHost, End, Start, Video, local_video
from videopanda.cli.checks import require_checkpoint, require_video
from videopanda.cli.options import AsJson, Device, Dtype, Fps, Model, load_model, progress_bar, show


def find_verb(
    video: Video,
    description: Annotated[str, Argument(help="What happens, as a statement.")],
    model: Model = None,
    num_frames: Annotated[int | None, Option(metavar="N", min=1, help="Number of frames. Default: 32.")] = None,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    device: Device = None,
    dtype: Dtype = None,
    allow_host: AllowHost = None,
    as_json: AsJson = False,
) -> None:
    """Find when something happens in a video: intervals, the most likely one first.

    Times are only as precise as the frames are close together: for a long clip,
    ask for more frames or a range.

    Example:  videopanda find clip.mp4 "the red circle turns white"
    """
    if not description.strip():
        raise ValueError(
            'the description is empty: say what happens, as in  find clip.mp4 "the red circle turns white"'
        )
    if num_frames == 1:
        raise ValueError("one frame is not enough to tell when something happens: raise --num-frames")
    model = require_checkpoint(model)
    with local_video(video, allow_host) as path:
        if require_video(path, start, end, fps, num_frames).is_still:
            raise ValueError(f"{path} is a still image, in which nothing can happen: pass a video")
        from videopanda.inference.find import find

        network, processor = load_model(model, device, dtype)
        choice: dict[str, Any] = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
        with progress_bar("looking") as progress:
            found = find(path, description, model=(network, processor), progress=progress, **choice)
    lines = [f"{'start':>10}  {'end':>10}  confidence"]
    lines += [f"{one.start:8.2f} s  {one.end:8.2f} s  {one.confidence:10.2f}" for one in found.intervals]
    if not found.intervals:
        lines = [found.reason]
    show(found.as_dict(), as_json, *lines)
