"""Protects answers about merged clips: batches, chats, a second video, streams and the server give what running the
whole merged sequence again gives, token by token.
"""

import base64
import json

import pytest
import torch
from engine_helpers import Asked, ask_for, finished
from fastapi.testclient import TestClient

from media import write_video
from tiny_elva import elva, frames, greedy_by_recompute, model_inputs
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.answer import Chat, build_prompt
from videopanda.inference.batch import Prompt, prefill
from videopanda.inference.clip import encode_clips
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.kv_prefix import CacheLayout
from videopanda.inference.request import GenerateRequest
from videopanda.serving.api import ServerSettings, create_app
from videopanda.video.read import read_video

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
MERGES = {
    "ratio": {"layers": [1, 3]},
    "drop": {"layers": [1, 3], "mode": "drop"},
    "threshold": {"layers": [0, 2], "mode": "threshold", "threshold": 0.3},
}
QUESTIONS = ["What colour is the circle?", "How many?", "Which way does it go, and when?"]
STEPS = 6


def video(seed: int, count: int = 5, height: int = 24, width: int = 40) -> Clip:
    return Clip(frames(seed, count, height, width), tuple(range(count)), float(count))


VIDEOS = [video(1), video(2, 3), video(3, 7, 16, 16)]


def say(role: str, text: str, has_video: bool = False) -> dict:
    return {"role": role, "content": [{"type": "video"}] * has_video + [{"type": "text", "text": text}]}


def whole_inputs(processor, messages, videos) -> dict:
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return model_inputs(processor(text=[text], videos=videos, add_special_tokens=False))


def recomputed(model, processor, messages, videos, steps: int = STEPS) -> list[int]:
    """Greedy tokens of a conversation without any cache."""
    with torch.no_grad():
        return greedy_by_recompute(model, whole_inputs(processor, messages, videos), steps)[0].tolist()


def words(processor, ids) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_questions_about_several_clips_in_one_batch(family, merge):
    """Alone, together, joining and leaving, and after a kept prefix."""
    model, processor = elva(family, MERGES[merge])
    model.generation_config.eos_token_id = None
    clips = encode_clips(model, processor, VIDEOS)
    cases = [(text, place) for place in range(3) for text in QUESTIONS[: 3 - place]]
    wanted = [recomputed(model, processor, [say("user", text, True)], [VIDEOS[place]]) for text, place in cases]
    requests = [ask_for(processor, text, clips[place], max_new_tokens=STEPS) for text, place in cases]
    keeping = Engine(model, processor, keep_prefixes=True)
    for engine in (Engine(model, processor), Engine(model, processor, Limits(max_num_seqs=2)), keeping, keeping):
        assert [list(one.token_ids) for one in finished(engine, requests)] == wanted
    kept = next(iter(clips[0].kv_prefixes.values()))
    assert kept.is_ragged
    lengths = [layer.keys.shape[2] for layer in kept.cache.layers]
    assert lengths == [positions.shape[1] for positions in kept.positions]
    assert lengths[-1] < kept.num_tokens[0]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_second_video_in_a_later_turn(family, merge):
    """It continues the cache of the first one, and merges as if nothing had been cached."""
    model, processor = elva(family, MERGES[merge])
    clips = encode_clips(model, processor, VIDEOS[:2])
    engine = Engine(model, processor, keep_prefixes=True)
    first = [say("user", QUESTIONS[0], True)]
    finished(engine, [GenerateRequest(build_prompt(processor, first, clips[:1]), clips[:1], 2)])
    both = [*first, say("assistant", "It is red."), say("user", QUESTIONS[1], True)]
    later = [*both, say("assistant", "Two."), say("user", QUESTIONS[2])]
    for messages in (both, later):
        prompt = build_prompt(processor, messages, clips)
        (reply,) = finished(engine, [GenerateRequest(prompt, clips, STEPS)])
        wanted = recomputed(model, processor, messages, VIDEOS[:2])
        assert list(reply.token_ids) == wanted[: len(reply.token_ids)]
        assert reply.stats.cached_tokens >= clips[0].num_tokens
    (key,) = clips[1].kv_prefixes
    kv = clips[1].kv_prefixes[key]
    prompt = build_prompt(processor, later, clips)
    _, logits = prefill(model, CacheLayout.of(model.config.text_config), [Prompt(prompt[kv.num_tokens[0] :], (), kv)])
    whole = model(**whole_inputs(processor, later, VIDEOS[:2]), use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)  # measured: 8e-7
    alone, _ = prefill(model, CacheLayout.of(model.config.text_config), [Prompt(key[1], clips)])
    for one, other in zip(kv.positions, alone[0].positions, strict=True):
        assert torch.equal(one, other)  # the same tokens are left in every layer


def test_a_second_video_after_an_unmerged_prefix():
    """The prefix has no visual that merges, so its layers are alike; after it they differ."""
    model, processor = elva(merge={"layers": [1]})
    (video_clip,) = encode_clips(model, processor, VIDEOS[:1])
    prompt = build_prompt(processor, [say("user", QUESTIONS[0], True)], [video_clip])
    layout = CacheLayout.of(model.config.text_config)
    first = next(place for place, token in enumerate(prompt) if token == processor.video_token_id)
    with torch.inference_mode():
        (text,), _ = prefill(model, layout, [Prompt(prompt[:first])])
        (kv,), logits = prefill(model, layout, [Prompt(prompt[first:], [video_clip], text)])
        (whole,), wanted = prefill(model, layout, [Prompt(prompt, [video_clip])])
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)  # measured: 8e-7
    assert not text.is_ragged
    assert [p.tolist() for p in kv.positions] == [p.tolist() for p in whole.positions]


def test_a_stream_and_a_chat_about_a_merged_clip():
    model, processor = elva()
    (clip,) = encode_clips(model, processor, VIDEOS[:1])
    engine = Engine(model, processor, keep_prefixes=True)
    asked = [Asked(engine, ask_for(processor, text, clip, max_new_tokens=STEPS)) for text in QUESTIONS]
    while engine.has_work:
        engine.step()
    for text, one in zip(QUESTIONS, asked):
        reply = one.end()  # which checks that the pieces make the whole
        assert words(processor, recomputed(model, processor, [say("user", text, True)], VIDEOS[:1])).startswith(
            reply.text.strip()
        )
    chat, messages = Chat(model, processor, VIDEOS[0], max_new_tokens=STEPS), []
    for text in QUESTIONS:
        messages.append(say("user", text, has_video=not messages))
        answer = chat.ask(text).answer
        assert answer == words(processor, recomputed(model, processor, messages, VIDEOS[:1]))
        messages.append(say("assistant", answer))


def test_the_server_answers_about_merged_clips(tmp_path):
    """Two videos in one conversation, plain and as a stream."""
    model, processor = elva(merge={"layers": [1, 3]}, hybrid_config={"every": 3})
    paths = [write_video(tmp_path / f"{n}.mp4", range(start, start + 20), fps=10) for n, start in enumerate((3, 900))]
    videos = [read_video(path, num_frames=6) for path in paths]
    parts = [
        {
            "type": "video_url",
            "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(p.read_bytes()).decode()}"},
        }
        for p in paths
    ]
    turns = [say("user", QUESTIONS[0], True), say("assistant", "Red."), say("user", QUESTIONS[1], True)]
    sent = [
        {"role": "user", "content": [parts[0], *turns[0]["content"][1:]]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [parts[1], *turns[2]["content"][1:]]},
    ]
    engine = EngineThread(model, processor, Limits(max_queue=8, cache_bytes=1 << 24))
    with TestClient(create_app(engine, ServerSettings("elva", tmp_path / "files"))) as client:
        for count in (1, 3):
            wanted = words(processor, recomputed(model, processor, turns[:count], videos[: (count + 1) // 2], 12))
            body = {"model": "elva", "messages": sent[:count], "max_tokens": 12}
            body["mm_processor_kwargs"] = {"num_frames": 6}
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["message"]["content"].strip() == wanted
            lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
            assert text.strip() == wanted
        cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > reply.json()["videopanda"]["visual_tokens"] // 2
