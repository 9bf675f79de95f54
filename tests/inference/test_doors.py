"""Protects that a question gets the same tokens by every door: generate, library, chat, predict, server, pipeline."""

import json

import pytest
import torch
from engine_helpers import Asked, by_transformers, finished
from fastapi.testclient import TestClient
from transformers import pipeline

import videopanda
from videopanda.data.worlds.scenes.make import make
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.inference.answer import Chat, ask, build_prompt, question_messages
from videopanda.inference.clip import ClipSource, encode_clip
from videopanda.inference.engine import Engine
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.request import GenerateRequest
from videopanda.serving.api import ServerSettings, create_app
from videopanda.video.read import read_video

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = [
    item["question"] for item in json.loads(CLIP.with_suffix(".json").read_text(encoding="utf-8"))["questions"]
]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


@pytest.fixture(scope="module")
def wanted(nano):
    """Token ids by `generate`, and their text."""
    model, processor = nano
    video = read_video(CLIP, num_frames=8)
    ids = [by_transformers(model, processor, question, video) for question in QUESTIONS]
    texts = [processor.tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in ids]
    assert len(set(texts)) > 4
    return ids, texts


def test_the_engine_gives_the_tokens_of_generate(nano, wanted):
    model, processor = nano
    clip, _ = encode_clip(model, processor, ClipSource(CLIP, 8, None, None), 64)
    prompts = [build_prompt(processor, question_messages(processor, question), [clip]) for question in QUESTIONS]
    requests = [GenerateRequest(prompt, [clip]) for prompt in prompts]
    assert [end.token_ids for end in finished(Engine(*nano), requests)] == wanted[0]
    engine = EngineThread(*nano)
    assert [asked.end().token_ids for asked in [Asked(engine, request) for request in requests]] == wanted[0]
    engine.close()


def test_library_and_chat(nano, wanted):
    assert [answer.answer for answer in ask(*nano, CLIP, QUESTIONS)] == wanted[1]
    assert [ask(*nano, CLIP, [question])[0].answer for question in QUESTIONS] == wanted[1]
    assert list(map(str, videopanda.answer(CLIP, QUESTIONS))) == wanted[1]
    chat = Chat(*nano, CLIP)
    assert [chat.ask_each([question])[0].answer for question in QUESTIONS] == wanted[1]
    assert Chat(*nano, CLIP).ask(QUESTIONS[0]).answer == wanted[1][0]


def test_server(nano, wanted, tmp_path):
    app = create_app(EngineThread(*nano), ServerSettings("nano", tmp_path / "files"))
    with TestClient(app, base_url="http://localhost") as client:
        uploaded = client.post("/v1/files", files={"file": CLIP.read_bytes()}, data={"purpose": "user_data"}).json()
        for question, text in zip(QUESTIONS, wanted[1]):
            content = [
                {"type": "file", "file": {"file_id": uploaded["id"]}},
                {"type": "text", "text": question},
            ]
            reply = client.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}
            ).json()
            assert reply["choices"][0]["message"]["content"] == text


def test_pipeline(nano, wanted):
    model, processor = nano
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    for question, text in zip(QUESTIONS[:3], wanted[1]):
        content = [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": question}]
        replies = pipe(text=[{"role": "user", "content": content}], max_new_tokens=64, return_full_text=False)
        assert replies[0]["generated_text"].strip() == text


def test_predict(nano, tmp_path):
    """Scenes as files with annotations: predictions are the library's answers."""
    folder = make(tmp_path / "scenes", 2, 3, "test")
    rows = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    job = PredictJob("scenes", folder, folder, batch_size=5)
    predict(job, tmp_path / "out.jsonl", device="cpu")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(found) > 3
    assert rows
    for question, row in zip((asked for batch in job.batches for asked in batch), found):
        (answer,) = ask(*nano, question.source.path, [job.prompts.ask(question.item, [])])
        assert row["prediction"] == answer.answer
    assert torch.is_inference_mode_enabled() is False
