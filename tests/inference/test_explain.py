"""Protects explanations: exact, cheaper than asking again from the start, and true for a needle in known frames."""

import json

import numpy as np
import pytest
import torch

from command import run
from tiny import clip, tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference import explain as module
from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.explain import _regions, _Scorer, explain
from videopanda.inference.load import BUNDLED_MODEL, load

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTION = "Which colour does the circle become?"


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


def by_hand(chat, answer, tokens):
    """The log-probability of an answer by one plain forward pass over prompt and answer."""
    ids = build_prompt(chat.processor, question_messages(chat.processor, answer.question), [chat.clip])
    whole = torch.tensor([[*ids, *answer.token_ids]])
    model = chat.engine.model
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(whole).clone()
        embeds[whole == chat.processor.video_token_id] = tokens
        logits = model.lm_head(model.get_decoder()(inputs_embeds=embeds).last_hidden_state)
    scores = logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return float(scores.gather(1, torch.tensor(answer.token_ids)[:, None]).sum())


def test_each_frame_is_scored_as_by_a_plain_forward_pass(nano):
    chat = Chat(*nano, CLIP)
    answer = chat.ask(QUESTION)
    scorer = _Scorer(chat, answer)
    tokens, layout = chat.clip.tokens, chat.clip.layout
    assert scorer.log_probability(None) == pytest.approx(by_hand(chat, answer, tokens), abs=2e-4)
    for frame in (0, 3, 7):
        mask = layout[:, 0] == frame
        changed = torch.where(mask[:, None], scorer.blank_VE, tokens)
        assert scorer.log_probability(mask) == pytest.approx(by_hand(chat, answer, changed), abs=2e-4)
        # measured worst difference of all eight frames: 1.2e-7


def test_what_precedes_a_frame_is_prefilled_once(nano, monkeypatch):
    lengths = []
    original = module.prefill
    monkeypatch.setattr(
        module,
        "prefill",
        lambda model, layout, prompts: lengths.append(len(prompts[0].ids)) or original(model, layout, prompts),
    )
    explain(*nano, CLIP, QUESTION, regions=False)
    assert len(lengths) == 2 + 2 * 8
    without = lengths[2::2]
    assert lengths[0] > without[0] > without[7]
    assert without[7] < lengths[0] / 4


def test_the_frames_after_a_change_of_colour_matter(nano):
    found = explain(*nano, CLIP, QUESTION)
    assert 0 < found.probability <= 1
    assert [frame.time for frame in found.frames] == list(found.answer.frame_times)
    assert sorted(found.ranking) == list(range(8))
    assert {region.frame for region in found.regions} == set(found.ranking[:3])
    report = json.loads(json.dumps(found.as_dict()))
    assert len(report["frames"]) == 8
    picture = module.picture(found)
    assert picture.width > 500
    assert np.asarray(picture).std() > 20


def test_a_model_that_ignores_the_clip_needs_no_frame():
    model, processor = tiny_model("paper"), tiny_processor("paper")
    with torch.no_grad():
        for part in model.vision_modules().values():
            for weight in part.parameters():
                weight.zero_()
    found = explain(model, processor, Clip(clip(8), tuple(range(8)), 8.0), "What?", max_new_tokens=3)
    assert max(abs(frame.fall) for frame in found.frames) < 1e-5


def test_regions_cover_every_cell_of_a_frame_once():
    layout = torch.tensor([[f, r, c, 0] for f in range(2) for r in range(3) for c in range(6)] + [[0, -1, -1, 1]])
    regions = _regions(layout, 0)
    assert len(regions) == 12
    covered = torch.stack([mask for _, mask in regions]).sum(0)
    assert covered.tolist() == [1] * 18 + [0] * 19
    assert regions[0][0] == pytest.approx((0.0, 0.0, 1 / 3, 1 / 3))


def test_the_command_prints_frames_and_writes_a_picture(tmp_path):
    words = ("answer", CLIP, QUESTION, "--model", BUNDLED_MODEL, "--explain")
    code, out, err = run(*words, "--picture", tmp_path / "evidence.png")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 10
    assert (tmp_path / "evidence.png").stat().st_size > 5000
    assert len(json.loads(run(*words, "--json")[1])["frames"]) == 8
    assert run(*words, "--stream")[0] == 2
    assert run("answer", CLIP, QUESTION, "--picture", tmp_path / "x.png")[0] == 2
