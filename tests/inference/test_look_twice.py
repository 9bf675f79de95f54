"""Protects looking twice: the attention that is followed is the model's own, the frames looked at again lie where most
of it is, and answers and predictions name them."""

import json
from fractions import Fraction

import pytest
import torch

from command import run
from compressed import FAMILIES, compressed
from media import write_video
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.inference.answer import ask, build_prompt, question_messages
from videopanda.inference.clip import ClipSource, encode_clip
from videopanda.inference.look_twice import ask_twice, attention_to, first_look
from videopanda.models.merge_schedule import MergeSchedule
from videopanda.models.visual import EncodedVisual

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", range(240), fps=10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_is_that_of_the_whole_prompt(family, video):
    model, processor = compressed(family)
    model.model.merge_schedule = MergeSchedule(())
    clip, _ = encode_clip(model, processor, ClipSource(video, 6, None, None), 8)
    share = attention_to(model, processor, clip, QUESTION)
    ids = torch.tensor([build_prompt(processor, question_messages(processor, QUESTION), [clip])])
    is_visual = ids[0] == model.config.video_token_id
    after = torch.arange(len(is_visual)) > is_visual.nonzero().max()
    implementation = model.get_decoder().config._attn_implementation
    model.get_decoder().set_attn_implementation("eager")
    with torch.inference_mode():
        visual = {"video": [EncodedVisual(clip.tokens, clip.layout)]}
        layers = model(input_ids=ids, mm_encoder_outputs=visual, use_cache=False, output_attentions=True).attentions
    whole = torch.stack([layer[0].mean(0)[after].mean(0) for layer in layers]).mean(0)[is_visual]
    assert share.shape == (clip.num_tokens,)
    assert float(share.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(share, whole / whole.sum(), atol=1e-6, rtol=0)  # measured: 1.1e-8
    model.get_decoder().set_attn_implementation(implementation)
    model.model.merge_schedule = merging = MergeSchedule((1,), 0.5)
    assert torch.equal(attention_to(model, processor, clip, QUESTION), share)
    assert model.model.merge_schedule is merging
    assert model.get_decoder().config._attn_implementation == implementation


@pytest.mark.parametrize("memory", [None, 300])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_come_from_where_most_attention_is(family, memory, video):
    model, processor = compressed(family, {"kind": "pool", "pool_time": 2})
    fps = memory and 2
    first = first_look(model, processor, video, num_frames=8, fps=fps, max_visual_tokens=memory)
    assert first.spans[0][0] == pytest.approx(0)
    assert first.spans[-1][1] == pytest.approx(24, abs=0.2)
    assert all(a[1] == pytest.approx(b[0]) for a, b in zip(first.spans, first.spans[1:]))
    step = first.clip.layout[:, 0]
    (answer,) = ask_twice(model, processor, video, [QUESTION], num_frames=8, fps=fps, max_visual_tokens=memory,
                          max_new_tokens=4)  # fmt: skip
    share = torch.zeros(len(first.spans)).index_add(0, step, attention_to(model, processor, first.clip, QUESTION))
    best = [first.spans[place] for place in share.argsort(descending=True)[:2].tolist()]
    assert len(answer.frame_times) == len(answer.selection) == 8
    assert list(answer.frame_times) == sorted(answer.frame_times)
    for moment, reason in zip(answer.frame_times, answer.selection):
        spans = [(a, b) for a, b in best if a - 0.1 <= moment < b]  # a frame starts up to 0.1 s before it is wanted
        assert spans
        assert any(reason.endswith(f"of the attention is on {a:.2f} to {b:.2f} s") for a, b in spans)
    assert answer.timings.keys() == {"decode", "preprocess", "generate"}


def test_the_second_look_of_a_family_with_any_size_is_finer(video):
    model, processor = compressed("elva")
    first = first_look(model, processor, video, num_frames=4)
    (answer,) = ask_twice(model, processor, video, [QUESTION], num_frames=4, max_new_tokens=4)
    assert len(first.clip.times) == 16
    assert first.clip.num_tokens / 16 < 0.5 * answer.visual_tokens / 4


def test_every_question_has_frames_of_its_own(video):
    model, processor = compressed("videopanda")
    questions = [QUESTION, "How many crosses are there in the second half of this clip?"]
    both = ask_twice(model, processor, video, questions, num_frames=4, max_new_tokens=4)
    for question, answer in zip(questions, both):
        (alone,) = ask_twice(model, processor, video, [question], num_frames=4, max_new_tokens=4)
        assert (alone.answer, alone.frame_times, alone.selection) == (
            answer.answer, answer.frame_times, answer.selection
        )  # fmt: skip


def test_what_cannot_be_looked_at_twice_is_refused(video):
    model, processor = compressed("videopanda")
    for questions in (QUESTION, [], iter([])):
        with pytest.raises(ValueError, match="a list of one or more"):
            ask_twice(model, processor, video, questions)
    with pytest.raises(ValueError, match="fps is that of a memory"):
        ask_twice(model, processor, video, [QUESTION], fps=2.0)
    code, out, err = run("answer", video, QUESTION, "--look-twice", "--frames-by", "motion")
    assert (code, out) == (2, "")
    assert "--look-twice chooses frames of the whole file" in err


def test_the_command_and_predictions_name_the_frames(video, tmp_path):
    code, out, _ = run("answer", video, QUESTION, "--look-twice", "--json", "--max-new-tokens", "4")
    assert code == 0
    told = json.loads(out)
    assert len(told["selection"]) == len(told["frame_times"]) == 8
    rows = [{"id": "a", "video": video.name, "families": ["colour"], "conversations": [
        {"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": "red"}]}]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    job = PredictJob("scenes", tmp_path, video.parent, look_twice=True, max_new_tokens=4)
    report = predict(job, tmp_path / "out.jsonl", device="cpu")
    assert report["answered"] == 1
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["prediction"] == told["answer"]
    assert row["frame_times"] == pytest.approx(told["frame_times"])
    assert row["protocol"]["sampling"] == "two looks"


def test_without_it_nothing_changes(video):
    model, processor = compressed("videopanda")
    assert ask(model, processor, video, [QUESTION], num_frames=4, max_new_tokens=4)[0].selection is None


def test_nothing_is_looked_at_after_the_end(tmp_path):
    """A last step shorter than a second, and a last picture that lasts less than the one before."""
    model, processor = compressed("videopanda", {"kind": "pool", "pool_time": 2})
    short = write_video(tmp_path / "a.mp4", range(25), fps=10)
    (answer,) = ask_twice(model, processor, short, iter([QUESTION]), num_frames=32, max_visual_tokens=300,
                          max_new_tokens=2)  # fmt: skip
    assert len(answer.frame_times) == 8
    assert 2 < answer.frame_times[-1] < 2.5
    slides = write_video(tmp_path / "b.mp4", range(2), fps=1, pts=[0, 15], time_base=Fraction(1))
    assert first_look(model, processor, slides, num_frames=4).spans[-1][1] == pytest.approx(16)
