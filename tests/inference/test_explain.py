"""Protects explanations: exact, cheaper than asking again from the start, and true for a needle in known frames."""

import json
import math

import numpy as np
import pytest
import torch

from command import run
from compressed import compressed
from media import write_video
from tiny import clip, tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference import engine
from videopanda.inference import explain as module
from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.changes import change
from videopanda.inference.clip import encode_prepared
from videopanda.inference.explain import _blank, _regions, explain
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
    tokens, layout = chat.clip.tokens, chat.clip.layout
    blank = _blank(chat.processor, chat.clip, chat.clip.frames)
    encode_prepared(chat.engine.model, [blank])
    found = explain(*nano, CLIP, QUESTION, regions=False)
    whole = by_hand(chat, answer, tokens)
    assert math.log(found.probability) == pytest.approx(whole, abs=2e-4)
    assert math.log(found.empty) == pytest.approx(by_hand(chat, answer, blank.tokens), abs=2e-4)
    for place in (0, 3, 7):
        is_frame = (layout[:, 0] == place)[:, None]
        without = by_hand(chat, answer, torch.where(is_frame, blank.tokens, tokens))
        alone = by_hand(chat, answer, torch.where(is_frame, tokens, blank.tokens))
        frame = found.frames[place]
        assert frame.fall == pytest.approx(math.exp(whole) - math.exp(without), abs=2e-4)
        assert frame.alone == pytest.approx(math.exp(alone) - found.empty, abs=2e-4)
        assert frame.weight == pytest.approx(whole - without + alone - math.log(found.empty), abs=4e-4)
        # measured worst difference of all eight frames: 2.3e-6


def test_what_precedes_a_frame_is_prefilled_once(nano, monkeypatch):
    lengths = []
    original = engine.prefill
    monkeypatch.setattr(
        engine,
        "prefill",
        lambda model, layout, prompts: (
            lengths.extend(len(one.ids) for one in prompts) or original(model, layout, prompts)
        ),
    )
    explain(*nano, CLIP, QUESTION, regions=False)
    prefix, rest, of_the_blank, *again = lengths[:5]
    assert prefix == of_the_blank
    assert again == [rest, rest]
    without, alone = lengths[5:13], lengths[13:]
    assert rest < without[0] < prefix / 4
    assert without == sorted(set(without))
    assert len(alone) == 8


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
    assert found._repr_html_().startswith('<img alt="frames"')


def test_a_model_that_ignores_the_clip_needs_no_frame():
    model, processor = tiny_model("paper"), tiny_processor("paper")
    with torch.no_grad():
        for part in model.vision_modules().values():
            for weight in part.parameters():
                weight.zero_()
    found = explain(model, processor, Clip(clip(8), tuple(range(8)), 8.0), "What?", max_new_tokens=3)
    assert max(abs(frame.fall) for frame in found.frames) < 1e-5


def test_progress_is_told_from_the_first_round_to_the_last():
    told = []
    video = Clip(clip(8), tuple(range(8)), 8.0)
    explain(tiny_model(), tiny_processor(), video, "What?", max_new_tokens=3, progress=lambda *now: told.append(now))
    done, totals = zip(*told)
    assert done[0] == 0
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}


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
    assert len(out.splitlines()) == 11
    assert max(map(len, out.splitlines())) <= 80
    assert (tmp_path / "evidence.png").stat().st_size > 5000
    assert len(json.loads(run(*words, "--json")[1])["frames"]) == 8
    assert run(*words, "--stream")[0] == 2
    assert run("answer", CLIP, QUESTION, "--picture", tmp_path / "x.png")[0] == 2


def test_frames_that_are_chosen_by_their_pixels_cannot_be_knocked_out():
    """The empty clip had the high resolution in other frames, and as many tokens: they were mixed."""
    model, processor = compressed("elva")
    change(model, processor, {"hybrid.every": "3", "hybrid.policy": "change"})
    frames = clip(8).copy()
    frames[5:] = 255 - frames[5:]
    with pytest.raises(ValueError, match="policy=every or ends"):
        explain(model, processor, Clip(frames, tuple(range(8)), 8.0), QUESTION, max_new_tokens=2)
    change(model, processor, {"hybrid.policy": "every"})
    assert explain(model, processor, Clip(frames, tuple(range(8)), 8.0), QUESTION, max_new_tokens=2).frames


def test_a_memory_has_no_frames_to_knock_out(tmp_path):
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    processor.video_processor.max_visual_tokens = 200
    with pytest.raises(ValueError, match="pass num_frames"):
        explain(model, processor, write_video(tmp_path / "a.mp4", range(25), fps=10), QUESTION, fps=1.0)
