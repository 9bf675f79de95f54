"""Protects `videopanda.video.read` on clips that others made where present: odd containers, damage, bad indices."""

from pathlib import Path

import av
import numpy as np
import pytest

from videopanda.video.read import VideoReadError, read_video
from videopanda.video.torchcodec import load as load_torchcodec

MEDIA = Path(__file__).parents[3] / "shared" / "media"
UNREADABLE = {
    "axm_bbb_1ch_48kHz_q10_opus.webm": "no video stream",
    "axm_invalid-bitstream.webm": "no frame can be decoded",
    "axm_large_stbl_truncated_after_moov.m4b": "no video stream",
    "axm_sample_audio_only.mp4": "no video stream",
    "axm_sample_malformed_free_box.mp4": "invalid data",
    "axm_sample_with_invalid_nalu.mp4": "damaged at 0.868 s",
    "decord_corrupted.mp4": "damaged at 3.000 s",
    "moviepy_zero_bytes_result.webm": "the file is empty",
    "mp4parse_chunk_out_of_range.mp4": "invalid data",
    "mp4parse_invalid_userdata.mp4": "no video frames",
    "tfio_audio_only_gs-16b-2c-44100hz.mp4": "no video stream",
}
CLIPS = sorted([*MEDIA.glob("clips/*"), *MEDIA.glob("odd/*")])


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_third_party_clips(path):
    if path.name in UNREADABLE:
        with pytest.raises(VideoReadError, match=UNREADABLE[path.name]):
            read_video(path, num_frames=8, decoder="pyav")
        return
    video = read_video(path, num_frames=8, max_side=224, decoder="pyav")
    assert video.frames.shape[0] == 8
    assert max(video.frames.shape[1:3]) == min(224, max(video.width, video.height))
    assert (np.diff(video.indices) >= 0).all()
    assert (video.timestamps <= video.times + 1e-3).all()
    if load_torchcodec()[0] is not None:  # then the default is not PyAV, and has to agree with it
        assert np.array_equal(read_video(path, num_frames=8, max_side=224).frames, video.frames)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("clips/dlc_m3v1mp4.mp4", 200),  # keyframes that decoding cannot start from
        ("odd/axm_sample_without_stss.mp4", 20),  # every frame called a keyframe
        ("odd/axm_roadtrip-vp92-10bit.webm", 60),  # hidden frames
        ("clips/hfdatasets_test_video_66x50.mov", 30),  # an edit list
        ("odd/axm_bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", 100),
        ("odd/axm_sample-with-large-length.avi", 40),  # B-frames without presentation times
    ],
)
def test_third_party_frame_equals_the_one_of_a_full_pass(name, index):
    path = MEDIA / name
    if not path.exists():
        pytest.skip("third-party clips are absent")
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        first = next(frames)
        frame = next(frame for k, frame in enumerate(frames, start=1) if k == index)
        seconds = index / 30 if name.endswith(".avi") else float((frame.pts - first.pts) * frame.time_base)
        video = read_video(path, timestamps=[seconds], decoder="pyav")
        assert video.indices.tolist() == [index]
        assert np.array_equal(video.frames[0], frame.to_ndarray(format="rgb24"))
