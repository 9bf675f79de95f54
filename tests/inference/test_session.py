"""Protects streams and long files: chunks give the tokens of the whole clip, streaming answers are offline answers at
every moment, memory and cost do not grow, every second counts, and what was lost is told."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compressed import FAMILIES, compressed
from media import write_video
from tiny import clip
from videopanda.inference.answer import Chat, ask
from videopanda.inference.session import VideoSession
from videopanda.inference.stream_encoder import encode_long
from videopanda.inference.token_memory import TokenMemory
from videopanda.models.visual import CELL
from videopanda.video.read import VideoReadError

QUESTION = "What colour is the circle?"
COMPRESSIONS = [
    {},
    {"kind": "pool", "pool_time": 2},
    {"kind": "mamba", "pool_time": 4},
    {"kind": "mamba2", "pool_time": 2},
]


def session_of(frames: np.ndarray, model, processor, **options) -> VideoSession:
    session = VideoSession(model, processor, max_new_tokens=6, **options)
    for seconds, image in enumerate(frames):
        session.push(image, float(seconds))
    return session


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda fields: fields.get("kind", "none"))
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_the_tokens_of_the_whole_clip(family, compression):
    model, processor = compressed(family, compression)
    rules, frames = processor.video_processor, clip(22)
    with torch.no_grad():
        (whole,) = model.encode(rules(videos=[frames], return_tensors="pt", num_frames=22))
        for chunks in (1, 2):
            size, state, made = model.chunk_frames * chunks, None, []
            for start in range(0, 22, size):
                visual, state = model.encode_chunk(rules.place_chunk(frames[start : start + size]), state)
                made.append(visual)
            tokens = torch.cat([visual.tokens for visual in made])
            torch.testing.assert_close(tokens, whole.tokens, atol=1e-5, rtol=0)  # measured: 1.2e-7
            assert torch.equal(torch.cat([visual.layout for visual in made])[:, 1:], whole.layout[:, 1:])
    assert state.frames == 22


def test_coordinates_need_the_length_and_then_agree():
    model, processor = compressed("videopanda", stab={"coordinates": True})
    rules, frames = processor.video_processor, clip(10)
    with torch.no_grad():
        (whole,) = model.encode(rules(videos=[frames], return_tensors="pt", num_frames=10))
        state, made = None, []
        for start in range(0, 10, 4):
            visual, state = model.encode_chunk(rules.place_chunk(frames[start : start + 4]), state, total_frames=10)
            made.append(visual.tokens)
    torch.testing.assert_close(torch.cat(made), whole.tokens, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="last_frames=N"):
        VideoSession(model, processor)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("videopanda", {"stab": {"segment_frames": None}}),
        ("videopanda", {"compression": {"kind": "mamba", "bidirectional": True}}),
        ("elva", {"compression": {"kind": "mamba", "queries": True}}),
    ],
)
def test_models_that_need_the_whole_clip_say_so(family, fields):
    model, processor = compressed(family, **fields)
    with pytest.raises(ValueError, match="needs the whole clip"):
        VideoSession(model, processor)
    with pytest.raises(ValueError, match="need the whole clip"):
        model.encode_chunk(processor.video_processor.place_chunk(clip(4)))
    assert session_of(clip(6), model, processor, last_frames=4).ask(QUESTION).answer is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_answers_are_offline_answers_at_every_moment(family):
    model, processor = compressed(family, {"kind": "mamba", "pool_time": 2})
    frames = clip(9)
    session = VideoSession(model, processor, max_new_tokens=6)
    for number, image in enumerate(frames, start=1):
        session.push(image, number - 1.0)
        video = SimpleNamespace(frames=frames[:number], timestamps=np.arange(number), duration=float(number))
        (offline,) = ask(model, processor, video, [QUESTION], max_new_tokens=6)
        online = session.ask(QUESTION)
        assert (online.answer, online.visual_tokens) == (offline.answer, offline.visual_tokens), number


def test_a_file_is_encoded_as_the_stream_of_it_and_as_the_whole_clip(tmp_path):
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    path = write_video(tmp_path / "a.mp4", range(200), fps=10)
    made, seconds, log = encode_long(model, processor, path, fps=2)
    (offline,) = ask(model, processor, path, [QUESTION], num_frames=None, fps=2.0)
    assert made.num_tokens == offline.visual_tokens
    assert made.times == offline.frame_times
    assert log.frames == 40
    assert set(seconds) == {"decode", "preprocess", "encode"}
    few, _, log = encode_long(model, processor, path, fps=2, max_visual_tokens=100)
    assert few.num_tokens <= 100
    assert sum(frames for *_, frames in log.steps) == 40  # every frame has its share
    baseline, _, log = encode_long(model, processor, path, fps=2, last_frames=4)
    np.testing.assert_allclose(baseline.times, [18.0, 18.5, 19.0, 19.5])
    assert log.dropped == 36


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_file_that_is_cut_short_or_damaged_is_refused(tmp_path, name):
    """As `read_video` refuses it: an answer about its first half would not say so."""
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    whole = write_video(tmp_path / f"whole{Path(name).suffix}", range(100), fps=10, g="10")
    if name == "a.mp4":  # its table of frames to the front
        fast = tmp_path / "fast.mp4"
        with av.open(str(whole)) as old, av.open(str(fast), "w", options={"movflags": "faststart"}) as new:
            track = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = track
                    new.mux(packet)
        whole = fast
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(VideoReadError, match=r"cut short|broke off"):
        encode_long(model, processor, cut, fps=1)
    encode_long(model, processor, cut, fps=1, end=2.0)  # what is there can be asked about


def test_a_model_that_was_trained_with_a_memory_reads_files_into_it(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(120), fps=2)
    model, processor = compressed("videopanda", {"kind": "pool", "pool_time": 4})
    processor.video_processor.max_visual_tokens = 300
    processor.save_pretrained(tmp_path / "processor")
    again = type(processor).from_pretrained(tmp_path / "processor")
    assert again.video_processor.max_visual_tokens == 300
    (answer,) = ask(model, again, path, [QUESTION], fps=1, max_new_tokens=4)
    assert answer.visual_tokens <= 300
    assert sum(int(line.rpartition(": ")[2]) for line in answer.selection) == 60
    assert VideoSession(model, again).memory.max_tokens == 300
    (given,) = ask(model, processor, path, [QUESTION], fps=1, max_visual_tokens=200, max_new_tokens=4)
    assert given.visual_tokens <= 200
    processor.video_processor.max_visual_tokens = None
    (whole,) = ask(model, processor, path, [QUESTION], fps=1, max_new_tokens=4)
    assert whole.selection is None
    assert whole.visual_tokens > 300


def test_a_change_in_any_second_changes_the_tokens():
    model, processor = compressed("elva")
    frames = np.repeat(clip(1), 90, axis=0)
    plain = session_of(frames, model, processor, max_visual_tokens=120).clip().tokens
    for second in (0, 13, 44, 89):
        changed = frames.copy()
        changed[second, :8, :8] = 255 - changed[second, :8, :8]
        other = session_of(changed, model, processor, max_visual_tokens=120).clip().tokens
        assert other.shape != plain.shape or float((other - plain).abs().max()) > 1e-4, second


def test_a_long_stream_needs_constant_memory_and_time():
    model, processor = compressed("elva", {"kind": "mamba", "pool_time": 2})
    frames, session = clip(8), VideoSession(model, processor, max_visual_tokens=200)
    kept = []
    tracemalloc.start()
    for second in range(320):
        session.push(frames[second % 8], float(second))
        if second in (199, 319):
            kept.append((session.num_bytes, tracemalloc.get_traced_memory()[0], len(session.memory.steps)))
    tracemalloc.stop()
    assert kept[0][0] == kept[1][0]
    assert kept[0][2] == kept[1][2]
    assert kept[1][1] - kept[0][1] < 100_000  # bytes in 120 frames: their times
    log = session.log
    assert sum(frames for *_, frames in log.steps) == log.frames == 320
    assert log.merged == 160 - len(log.steps)


def test_frames_of_another_size_are_scaled_and_told():
    model, processor = compressed("elva")
    session = session_of(clip(3), model, processor)
    session.push(clip(1, 60, 80)[0], 3.0)
    assert session.log.resized == 1
    assert session.ask(QUESTION).visual_tokens == 4 * processor.video_processor.token_count(1, 30, 40)
    with pytest.raises(ValueError, match="must not decrease"):
        session.push(clip(1)[0], 2.0)
    with pytest.raises(ValueError, match="a frame must be uint8"):
        session.push(np.zeros((3, 3)), 9.0)
    with pytest.raises(ValueError, match="no frame has been pushed yet"):
        VideoSession(model, processor).ask(QUESTION)


def step(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cells = torch.tensor([[0, 0, column, CELL] for column in range(len(value))])
    return value, cells


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 3), st.integers(2, 12), st.integers(0, 99))
def test_merging_keeps_all_mass_and_the_window(count, window, room, seed):
    window = min(window, room - 1)
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn(3, 4, generator=generator) for _ in range(count)]
    memory = TokenMemory(3 * room + 1, window)
    for number, value in enumerate(steps):
        memory.add(*step(value), [float(number)])
    assert len(memory.steps) == min(count, room)
    assert sum(frames for *_, frames in memory.spans) == count
    total = sum(one.frames * one.tokens for one in memory.steps)
    torch.testing.assert_close(total, sum(steps), atol=1e-4, rtol=0)  # measured: 3e-6
    for back in range(1, min(window, count) + 1):
        assert torch.equal(memory.steps[-back].tokens, steps[-back])
    assert [start for start, *_ in memory.spans] == sorted(start for start, *_ in memory.spans)


def test_idle_stretches_merge_before_events_do():
    memory, still, event = TokenMemory(15), torch.ones(3, 4), torch.tensor([[1.0, -1, 1, -1]] * 3)
    for number in range(200):
        memory.add(*step(event if number in (50, 51) else still), [float(number)])
    assert any(start >= 50 and end <= 51 for start, end, _ in memory.spans)


def test_steps_stand_for_the_frames_whose_tokens_they_hold():
    """Of eight frames in pairs, ToMe left tokens numbered 1 and 3, test-time sampling 0 and 2."""
    times = [float(second) for second in range(8)]
    for numbers, spans in (
        ([1, 1, 3], [(0.0, 5.0, 6), (6.0, 7.0, 2)]),
        ([0, 2, 2], [(0.0, 3.0, 4), (4.0, 7.0, 4)]),
        ([0, 1, 2], [(0.0, 1.0, 2), (2.0, 3.0, 2), (4.0, 7.0, 4)]),
    ):
        memory, layout = TokenMemory(100), torch.zeros(3, 4, dtype=torch.long)
        layout[:, 0] = torch.tensor(numbers)
        memory.add(torch.zeros(3, 4), layout, times, frames=2)
        assert memory.spans == spans


def test_what_cannot_merge_is_dropped_and_told():
    memory = TokenMemory(20)
    for number in range(6):
        memory.add(*step(torch.randn(3 + number, 4)), [float(number)])
    assert memory.num_dropped > 0
    assert memory.dropped[0] == (0.0, 0.0)
    with pytest.raises(ValueError, match="max_visual_tokens must be at least"):
        memory.add(*step(torch.randn(30, 4)), [9.0])


@pytest.mark.parametrize(("start", "end"), [(None, None), (0.5, None), (1.2, 1.6), (0.3, 2.3)])
def test_a_part_of_a_file_has_the_frames_and_the_length_of_the_part(tmp_path, start, end):
    """Those of reading it without a memory; 2.5 seconds were stated as 3, and the frames of a part lay elsewhere."""
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    processor.time_prompt = True
    path = write_video(tmp_path / "a.mp4", range(25), fps=10)
    made, _, log = encode_long(model, processor, path, fps=1, start=start, end=end)
    whole = Chat(model, processor, path, fps=1.0, start=start, end=end).clip
    assert made.times == pytest.approx(whole.times)
    assert made.placeholder_text == whole.placeholder_text
    assert sum(frames for *_, frames in log.steps) == len(made.times)  # also of a last chunk that is not whole


def test_what_cannot_be_read_into_a_memory_is_refused(tmp_path):
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    path, still = write_video(tmp_path / "a.mp4", range(25), fps=10), tmp_path / "a.png"
    Image.fromarray(clip(1)[0]).save(still)
    for source, options, said in (
        (path.read_bytes(), {}, "pass its path"),
        (SimpleNamespace(frames=clip(2), timestamps=np.arange(2), duration=2.0), {}, "already decoded"),
        (still, {}, "still image"),
        (path, {"fps": 0}, "positive number"),
        (path, {"start": 3.0}, "lasts only 2.5"),
        (path, {"start": 2.0, "end": 1.0}, "must be later"),
    ):
        with pytest.raises(ValueError, match=said):
            Chat(model, processor, source, max_visual_tokens=200, **options)


def test_a_frame_that_fails_leaves_the_session_as_it_was():
    """Later ones were accepted without a word, and kept for ever."""
    session = VideoSession(*compressed("elva", {"kind": "pool", "pool_time": 2}), max_visual_tokens=5)
    session.push(clip(1)[0], 0.0)  # half of a chunk
    for seconds in range(1, 4):
        with pytest.raises(ValueError, match="max_visual_tokens must be at least"):
            session.push(clip(1)[0], float(seconds))
    assert (session.num_frames, len(session._pending), session.duration) == (1, 1, 1.0)


def test_sessions_are_told_apart_although_one_is_where_another_was():
    """A prompt is prefilled once for all clips with the same key."""
    loaded, keys = compressed("elva", {"kind": "pool", "pool_time": 2}), set()
    for _ in range(3):
        session = session_of(clip(1), *loaded)
        keys.add(session.clip().key)
        del session
    assert len(keys) == 3
