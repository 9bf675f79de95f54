"""Protects the choice of frames by the sizes of packets and by motion vectors: more where something moves, one for
every scene, and a reason for each."""

import gc
import io
import os
import threading
from fractions import Fraction

import numpy as np
import pytest

from compressed import compressed
from media import frames_alive, write_video
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.inference.answer import ask
from videopanda.video.activity import Activity, _by_scenes, activity_of, chosen_times, vectors_of
from videopanda.video.read import VideoReadError, read_video


def clip(path, moving: tuple[float, float] = (0, 0), cuts: tuple[float, ...] = ()):
    """20 seconds of a textured picture, whose texture slides in one stretch and is replaced at cuts."""
    rng = np.random.default_rng(0)
    textures = rng.integers(0, 255, (len(cuts) + 1, 72, 400, 3), dtype=np.uint8)

    def frames():
        for number in range(200):
            second = number / 10
            shift = int(10 * (min(max(second, moving[0]), moving[1]) - moving[0]))
            yield textures[sum(cut <= second for cut in cuts)][:, shift : shift + 96]

    write_frames(frames(), (96, 72), Fraction(10), path)
    return path


def test_packets_are_the_frames(tmp_path):
    path = clip(tmp_path / "a.mp4", (5, 8))
    activity = activity_of(path)
    np.testing.assert_allclose(activity.times, np.arange(200) / 10, atol=1e-6)
    assert activity.is_key[0]


def test_motion_draws_frames(tmp_path):
    times, reasons = chosen_times(clip(tmp_path / "a.mp4", (10, 14)), 12, "motion")
    assert len(times) == len(reasons) == 12
    assert sum(9.5 <= moment <= 14.5 for moment in times) >= 7  # a fifth of the clip
    assert min(times) < 9
    assert max(times) > 15


def test_motion_vectors_tell_how_far_things_move(tmp_path):
    path = clip(tmp_path / "a.mp4", (10, 14))
    times, motion = vectors_of(path)
    np.testing.assert_allclose(times, np.arange(200) / 10, atol=1e-6)
    moving = (times > 10.15) & (times < 13.95)
    assert 1 <= motion[moving].mean() <= 4  # the texture slides by a pixel per frame, and references are near
    assert motion[~moving].mean() < 0.1 * motion[moving].mean()
    chosen, reasons = chosen_times(path, 12, "vectors")
    assert sum(9.5 <= moment <= 14.5 for moment in chosen) >= 8
    assert min(chosen) < 9
    assert max(chosen) > 15
    assert "motion (lengths of motion vectors)" in reasons[0]


def test_frames_with_vectors_are_freed(tmp_path):
    write_frames(
        (np.full((32, 32, 3), n % 250, np.uint8) for n in range(60)), (32, 32), Fraction(25), tmp_path / "a.mp4"
    )
    gc.collect()
    gc.disable()
    try:
        before = frames_alive()
        vectors_of(tmp_path / "a.mp4")
        assert frames_alive() == before
    finally:
        gc.enable()


def test_flicker_has_no_vectors_and_a_codec_without_them_says_so(tmp_path):
    def frames():
        for number in range(60):
            yield np.full((72, 96, 3), 40 + 150 * (number % 2), np.uint8)

    write_frames(frames(), (96, 72), Fraction(10), tmp_path / "flicker.mp4")
    assert activity_of(tmp_path / "flicker.mp4").sizes[1:].min() > 10
    assert vectors_of(tmp_path / "flicker.mp4")[1].max() < 0.5
    write_video(tmp_path / "a.mkv", range(5), codec="ffv1")
    with pytest.raises(VideoReadError, match="reports no motion vectors: choose frames by motion"):
        chosen_times(tmp_path / "a.mkv", 4, "vectors")


def test_every_scene_has_a_frame_and_gaps_are_filled(tmp_path):
    cuts = (3.0, 4.5, 12.0)
    times, reasons = chosen_times(clip(tmp_path / "a.mp4", cuts=cuts), 6, "scenes")
    assert times[0] == 0
    assert set(cuts) <= {round(moment, 3) for moment in times}
    assert sum("new scene:" in reason for reason in reasons) == 3
    assert sum("longest stretch" in reason for reason in reasons) == 2
    few, _ = chosen_times(tmp_path / "a.mp4", 1, "scenes")
    assert few == [0.0]
    every, _ = chosen_times(tmp_path / "a.mp4", 500, "scenes")
    assert len(every) == 200


def test_a_few_bytes_on_a_still_picture_are_no_new_scene():
    sizes = np.full(100, 12.0)
    sizes[[0, 40]] = 7000
    sizes[[20, 60]] = 90  # noise that the encoder refined
    is_key = np.zeros(100, bool)
    is_key[0] = True
    places, reasons = _by_scenes(Activity(np.arange(100) / 10, sizes, is_key), 4)
    assert [place for place, reason in zip(places, reasons) if "new scene:" in reason] == [40]


def test_answers_name_the_frames_and_why(tmp_path):
    path, (model, processor) = clip(tmp_path / "a.mp4", cuts=(3.0,)), compressed("elva")
    (answer,) = ask(model, processor, path, ["What?"], num_frames=4, frames_by="scenes", max_new_tokens=3)
    times, reasons = chosen_times(path, 4, "scenes")
    assert answer.frame_times == tuple(times)
    assert answer.as_dict()["selection"] == tuple(reasons)
    (whole,) = ask(model, processor, path, ["What?"], max_visual_tokens=300, max_new_tokens=3)
    assert whole.visual_tokens <= 300
    assert whole.selection[0].startswith("frames from 0.00")
    assert sum(int(line.rpartition(" ")[2]) for line in whole.selection) == 20
    with pytest.raises(ValueError, match="omit fps"):
        ask(model, processor, path, ["What?"], fps=1.0, frames_by="motion")


def test_files_in_memory_have_the_frames_of_their_path(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(60))
    for rule in ("motion", "scenes"):
        wanted = chosen_times(path, 4, rule)
        for source in (path.read_bytes(), io.BytesIO(path.read_bytes())):
            assert chosen_times(source, 4, rule) == wanted
            assert chosen_times(source, 4, rule) == wanted  # not used up by the first time
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True).start()
    with pytest.raises(VideoReadError, match="a pipe can be read only once: write a file"):
        chosen_times(pipe, 4, "motion")


def test_what_has_no_packets_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(VideoReadError):
        chosen_times(tmp_path / "a.txt", 4, "motion")
    with pytest.raises(ValueError, match="motion, scenes or vectors"):
        chosen_times(clip(tmp_path / "a.mp4"), 4, "speed")
    assert len(read_video(tmp_path / "a.mp4", timestamps=[0.0])) == 1


def test_a_clock_that_starts_again_is_refused(tmp_path):
    """The second recording was taken for part of the first, and its frames were never chosen."""
    parts = [write_video(tmp_path / f"{number}.ts", range(50), fps=25).read_bytes() for number in range(2)]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    for rule in ("motion", "scenes", "vectors"):
        with pytest.raises(VideoReadError, match="its clock starts again"):
            chosen_times(tmp_path / "joined.ts", 4, rule)
