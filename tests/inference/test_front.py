"""Protects the public Python interface: streams, asyncio, batches, and an answer that shows what it rests on."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest

import coroutines
import videopanda
from videopanda.inference.answer import Chat, ask
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.sampling import Sampling

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ["What shape is the red object?", "Which way does the blue cross move?"]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


def test_every_public_name_is_there():
    assert {"Answer", "Chat", "answer", "load", "read_video", "stream"} <= set(videopanda.__all__)
    assert all(callable(getattr(videopanda, name)) for name in videopanda.__all__)
    assert (Path(videopanda.__file__).parent / "py.typed").is_file()
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in videopanda.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_a_stream_adds_up_to_the_answer_and_remembers(nano):
    one, other = Chat(*nano, CLIP), Chat(*nano, CLIP)
    for question in QUESTIONS:
        pieces = list(one.stream(question))
        assert "".join(pieces) == other.ask(question).answer
    assert one.messages == other.messages
    stream = videopanda.stream(CLIP, QUESTIONS[0], model=nano)
    assert "".join(stream) == videopanda.answer(CLIP, QUESTIONS[0], model=nano).answer


def test_a_stream_is_generated_as_it_is_read(nano):
    chat = Chat(*nano, CLIP, sampling=Sampling(temperature=2.0, seed=1))
    stream = chat.stream("Tell me everything.")
    next(stream)
    sequence = chat.engine._admitted[0]
    assert 0 < sequence.stats.completion_tokens < 20


def test_a_stream_that_is_left_changes_nothing(nano):
    chat = Chat(*nano, CLIP)
    stream = chat.stream(QUESTIONS[0])
    next(stream)
    with pytest.raises(ValueError, match="still answering"):
        chat.ask(QUESTIONS[1])
    stream.close()
    assert chat.messages == []
    assert chat.ask(QUESTIONS[1]).answer == ask(*nano, CLIP, QUESTIONS[1:])[0].answer


def test_asyncio_gets_the_same_answers(nano):
    async def run():
        chat, other = Chat(*nano, CLIP), Chat(*nano, CLIP)
        asked = asyncio.gather(chat.aask(QUESTIONS[0]), other.aask(QUESTIONS[1]))
        streamed = [text async for text in videopanda.astream(CLIP, QUESTIONS[0], model=nano)]
        later = [text async for text in chat.astream(QUESTIONS[1])] if await asked else []
        return [answer.answer for answer in await asked], "".join(streamed), "".join(later)

    first, second = (answer.answer for answer in ask(*nano, CLIP, QUESTIONS))
    chat = Chat(*nano, CLIP)
    chat.ask(QUESTIONS[0])
    assert coroutines.run(run()) == ([first, second], first, chat.ask(QUESTIONS[1]).answer)
    assert str(coroutines.run(videopanda.aanswer(CLIP, QUESTIONS[0], model=nano))) == first


def test_a_cancelled_task_leaves_the_chat_usable(nano):
    chat = Chat(*nano, CLIP, sampling=Sampling(temperature=2.0, seed=1))

    async def listen():
        async for _ in chat.astream("Tell me everything."):
            pass

    async def run():
        task = asyncio.create_task(listen())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await chat.aask(QUESTIONS[0])

    assert coroutines.run(run()).question == QUESTIONS[0]
    assert len(chat.messages) == 2


def test_clips_times_questions(nano, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(CLIP.read_bytes())
    grid = videopanda.answer([CLIP, copy], QUESTIONS, model=nano)
    assert [list(map(str, row)) for row in grid] == [list(map(str, videopanda.answer(CLIP, QUESTIONS, model=nano)))] * 2
    column = videopanda.answer([CLIP, copy], QUESTIONS[0], model=nano, num_frames=4)
    assert [len(answer.frame_times) for answer in column] == [4, 4]


def test_an_answer_shows_what_it_rests_on(nano):
    answer = videopanda.answer(CLIP, QUESTIONS[0], model=nano)
    video = videopanda.read_video(CLIP, num_frames=8)
    assert str(answer) == answer.answer
    assert np.array_equal(answer.frames, video.frames)
    assert answer.prompt_tokens > answer.visual_tokens > 0
    assert answer.completion_tokens > 0
    assert answer.finish_reason == "stop"
    assert json.loads(json.dumps(answer.as_dict()))["answer"] == answer.answer
    page = answer._repr_html_()
    assert re.search(r'<img [^>]*src="data:image/png;base64,\w', page)
    assert answer.answer in page
    assert f"{answer.visual_tokens} visual tokens" in page
    cost = f"8 frames from 0.25 to 3.75 s, {answer.visual_tokens} visual tokens, "
    assert repr(answer).startswith(f"Answer({answer.answer!r}, {cost}")
    assert len(repr(answer)) < 90
    cut = videopanda.answer(CLIP, "Tell me <b>all</b>.", model=nano, max_new_tokens=1)
    assert cut.finish_reason in ("stop", "length")
    assert "<b>all" not in cut._repr_html_()


def test_frames_per_second_are_those_of_the_reader(nano):
    answer = videopanda.answer(CLIP, QUESTIONS[0], model=nano, fps=2.0)
    assert answer.frame_times == tuple(videopanda.read_video(CLIP, fps=2.0).timestamps)
    with pytest.raises(ValueError, match="mutually exclusive"):
        videopanda.answer(CLIP, "What?", model=nano, fps=2.0, num_frames=3)
    with pytest.raises(ValueError, match="positive number"):
        videopanda.answer(CLIP, "What?", model=nano, fps=float("inf"))
    with pytest.raises(ValueError, match="at most"):
        videopanda.answer(CLIP, "What?", model=nano, fps=1e6)


def test_a_seed_repeats_a_sampled_answer(nano):
    chosen = [
        videopanda.answer(CLIP, "Tell me all.", model=nano, sampling=Sampling(20.0, seed=seed), max_new_tokens=8).answer
        for seed in (1, 1, 2, 3, 4)
    ]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_a_video_is_described_in_one_line():
    shown = repr(videopanda.read_video(CLIP, num_frames=3))
    assert re.fullmatch(r"Video\(3 frames of \d+x\d+, 0\.00 to 4\.00 s of 4\.00 s at [\d.]+ fps, by \w+\)", shown)
