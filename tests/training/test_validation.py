"""Protects what a run tells about clips that it does not train on: which they are, and what loss and accuracy mean."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clips import STAGE, Clips, held_out, metrics

from tiny import clip, tiny_model, tiny_processor
from tiny_elva import elva
from videopanda.data import shuffling
from videopanda.data.collate import IGNORE, Collator
from videopanda.data.conversations import ConversationDataset
from videopanda.data.sample import Sample
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.models.merge_schedule import MergeSchedule
from videopanda.training.datasets import make_dataset, make_validation
from videopanda.training.plots import PANELS, points_of
from videopanda.training.run import run_stage
from videopanda.training.stages import StageConfig, make_config
from videopanda.training.validation import (
    ValidationBatches,
    answer_sums,
    attention_shares,
    line_of,
    named,
    without_videos,
)

SAMPLES = [
    Sample("one", (clip(8, seed=1),), ((("<video>\nWhat colour?", "red"), ("Sure?", "yes")), (("How many?", "2"),))),
    Sample("two", (clip(3, 20, 40, seed=2),), ((("Where?", "left of the square"),),)),
    Sample("three", (clip(8, seed=3),), ((("Who?", "nobody"),),)),
]


# -- which clips -------------------------------------------------------------------------------------------------------
def test_rows_are_split_by_file():
    """Rows of a held-out file are held out, one that mixes files is in neither part, one without files is trained."""
    files = np.array([shuffling.key_of(f"{i}.mp4") for i in range(40)], np.uint64)
    rows = [[i % 40] for i in range(200)] + [[], [0, 1], [2]]
    media, counts = files[np.concatenate([np.array(row, int) for row in rows])], np.array([len(row) for row in rows])
    trained, held = shuffling.hold_out(media, counts, 64)
    chosen = {row[0] for row, one in zip(rows, held) if one and len(row) == 1}
    assert len(chosen) == 4  # a tenth
    for row, one, other in zip(rows, trained, held):
        hits = len(chosen & set(row))
        assert (one, other) == (hits == 0, bool(row) and hits == len(row))
    assert len({row[0] for row, one in zip(rows, shuffling.hold_out(media, counts, 3)[1]) if one}) == 3
    assert not shuffling.hold_out(media, counts, 0)[1].any()
    few = shuffling.hold_out(files[:9], np.ones(9, np.int64), 64)
    assert few[0].all()
    assert not few[1].any()


def test_the_choice_of_a_file_depends_on_itself():
    """More files move the border, not the order: what a small stage holds out a larger one does not train on first."""
    files = np.array([shuffling.key_of(f"{i}.mp4") for i in range(100)], np.uint64)
    ones = np.ones(100, np.int64)
    order = shuffling.hold_out(files[::-1], ones, 5)[1][::-1]
    assert np.array_equal(order, shuffling.hold_out(files, ones, 5)[1])
    assert not (shuffling.hold_out(files, ones, 3)[1] & ~order).any()


def annotations(folder, clips=30):
    """A file of two rows per clip, about different parts of it, and one of text alone."""
    rows = [
        {
            "id": f"{i}-{k}",
            "video": f"{i}.mp4",
            "start": 2.0 * k,
            "end": 2.0 * k + 2,
            "conversations": turns(f"<video>{k}"),
        }
        for i in range(clips)
        for k in range(2)
    ]
    rows.append({"id": "text", "conversations": turns("Who?")})
    for i in range(clips):
        (folder / f"{i}.mp4").write_bytes(b"a clip")
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def turns(question):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]


def clips_of(dataset) -> set[str]:
    return {medium.path for i in range(len(dataset)) for _, _, record in dataset.records(i) for medium in record.media}


@pytest.mark.parametrize("fields", [{}, {"group_by_clip": True}, {"share": 0.5}, {"seed": 7}], ids=str)
def test_no_clip_is_trained_and_validated(tmp_path, fields):
    path = annotations(tmp_path)
    whole = ConversationDataset(path, **fields)
    dataset = ConversationDataset(path, held_out=64, **fields)
    held_out = dataset.validation()
    assert whole.validation() is None
    assert len(clips_of(held_out)) == 3
    assert not clips_of(dataset) & clips_of(held_out)
    assert clips_of(held_out) == clips_of(ConversationDataset(path, held_out=64).validation())  # in every stage
    assert len(held_out) == 6
    if "share" not in fields:
        assert len(dataset) + len(held_out) == len(whole)
        assert clips_of(dataset) | clips_of(held_out) == {f"{i}.mp4" for i in range(30)}
    shards = tmp_path / "shards"
    write_shards(ConversationDataset(path), shards, samples_per_shard=10)
    fields.pop("group_by_clip", None)
    packed = ShardDataset(shards, held_out=64, **fields)
    assert len(packed.validation()) == 6
    places = [{one.files(i)[0] for i in range(len(one))} for one in (packed, packed.validation())]
    assert not places[0] & places[1]
    assert ShardDataset(shards).validation() is None


def test_copies_of_a_recording_are_held_out_with_it(tmp_path):
    """Else early stopping watches recordings that are trained on."""
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [
        {"id": f"{i}-{copy}", "video": f"{i}-{copy}.mp4", "recording": f"{i}.mp4", "conversations": turns}
        for i in range(30)
        for copy in range(3)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = ConversationDataset(tmp_path / "rows.json", held_out=64)
    held_out = dataset.validation()
    trained, held = (
        Counter(Path(data.files(i)[0]).name.partition("-")[0] for i in range(len(data))) for data in (dataset, held_out)
    )
    assert set(held.values()) == {3}
    assert len(held) == 3  # a tenth of the recordings
    assert not trained.keys() & held.keys()


def test_validation_is_on_where_the_data_allow_it(tmp_path, caplog):
    stage = make_config("finetune", "custom", [f"data={annotations(tmp_path)}", "dtype=float32"])
    assert len(clips_of(make_validation(stage, make_dataset(stage)))) == 3
    few = replace(stage, data=str(annotations(tmp_path, clips=9)))
    with caplog.at_level("INFO"):
        assert make_validation(few, make_dataset(few)) is None
    assert "validation      none: the data has fewer than ten clips" in caplog.text
    off = replace(stage, validation=0)
    assert make_validation(off, make_dataset(off)) is None
    assert len(make_dataset(off)) == 19
    scenes = make_config("pretrain", "nano", ["max_steps=2", "validation=5"])
    held_out = make_validation(scenes, make_dataset(scenes))
    assert len(held_out) == 5
    assert held_out[0].id.startswith("validation-")
    sharded = replace(stage, strategy="zero3")
    assert make_validation(sharded, make_dataset(sharded)) is None
    with pytest.raises(ValueError, match="validation must not be negative, got -1"):
        replace(stage, validation=-1)
    alignment = make_config("prealign", "nano", ["max_steps=2"])  # learns no text
    assert make_validation(alignment, make_dataset(alignment)) is None


# -- what is measured --------------------------------------------------------------------------------------------------
def test_sums_are_those_of_the_model():
    """Against the model's own loss and, answer by answer, its most likely tokens. Worst loss measured: 4e-6 of 160."""
    model, processor = tiny_model("paper"), tiny_processor("paper")
    collator = Collator(processor, 4096)
    batch = collator(SAMPLES)
    with torch.no_grad():
        expected = model(**batch)
        sums = answer_sums(model, batch)
    logits = expected.logits.clone()
    logits[..., [processor.video_token_id, processor.image_token_id]] = float("-inf")
    best, labels = logits.argmax(-1), batch["labels"]
    answers = []
    for row in range(len(labels)):
        places = (labels[row] != IGNORE).nonzero().squeeze(1).tolist()
        for i in places:
            if i - 1 not in places:
                answers.append([])
            answers[-1].append(bool(best[row, i - 1] == labels[row, i]))
    tokens = sum(map(len, answers))
    assert len(answers) == 5
    assert sums[1:].tolist() == [tokens, sum(map(sum, answers)), 5, sum(map(all, answers))]
    assert sums[0].item() / tokens == pytest.approx(expected.loss.item(), rel=1e-6)


def test_an_answer_is_right_when_all_its_tokens_are():
    """A model that says what it is told: right answers are made, and one token of one of them is broken."""
    processor = tiny_processor("paper")
    batch = Collator(processor, 4096)([without_videos(sample) for sample in SAMPLES])

    class Told:
        generation_config = tiny_model().generation_config

        def __init__(self, said):
            self.said = said

        def __call__(self, input_ids, logits_to_keep, **_):
            logits = 5.0 * F.one_hot(self.said[:, 1:], 300).float()
            return type("Output", (), {"logits": logits[:, logits_to_keep]})

    said = batch["input_ids"].clone()
    _, tokens, right_tokens, answers, right = answer_sums(Told(said), batch).tolist()
    assert (right_tokens, answers, right) == (tokens, 5, 5)
    broken = int((batch["labels"][1] != IGNORE).nonzero()[1])
    said[1, broken] = 40
    assert answer_sums(Told(said), batch).tolist()[1:] == [tokens, tokens - 1, 5, 4]
    expected = {"loss": 1.5, "accuracy": 0.5, "token_accuracy": 0.75}
    found = named(torch.tensor([6.0, 4, 3, 2, 1]), "_no_video")
    assert found == {f"validation_{name}_no_video": value for name, value in expected.items()}


def test_without_the_video_only_the_words_are_left():
    sample = without_videos(SAMPLES[0])
    assert sample.videos == ()
    said = [[turn[:2] for turn in turns] for turns in sample.conversations]
    assert said == [[("What colour?", "red"), ("Sure?", "yes")], [("How many?", "2")]]
    processor = tiny_processor("paper")
    batch = Collator(processor, 4096)([sample])
    assert processor.video_token_id not in batch["input_ids"]
    labels = Collator(processor, 4096)(SAMPLES[:1])["labels"]
    assert batch["labels"][batch["labels"] != IGNORE].tolist() == labels[labels != IGNORE].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_is_measured_once_whatever_the_processes(world_size, workers):
    model, processor = tiny_model("paper"), tiny_processor("paper")
    collator = Collator(processor, 4096, pad_to=900, cell_words=True)
    total = {"": torch.zeros(5), "_no_video": torch.zeros(5)}
    lengths = set()
    for rank in range(world_size):
        batches = ValidationBatches(SAMPLES, collator, 2, rank, world_size)
        found = list(batches.read(workers if world_size == 1 else 0))
        lengths.add(len(found))
        for counts, by_condition in found:
            with torch.no_grad():
                for suffix, batch in by_condition.items():
                    total[suffix] += answer_sums(model, batch) * counts
    assert len(lengths) == 1  # sharded processes must run in step
    with torch.no_grad():
        alone = sum(answer_sums(model, Collator(processor, 4096)([sample])) for sample in SAMPLES)
    torch.testing.assert_close(total[""], alone, rtol=1e-5, atol=1e-4)
    assert total["_no_video"][3] == total[""][3] == 5


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: (tiny_model(), tiny_processor()), elva], ids=["stab", "merging"])
def test_the_attention_to_a_video_is_that_of_the_text_after_it(make):
    model, processor = make()
    processor.time_prompt = False  # the clips are arrays without a length
    before = model.get_decoder().config._attn_implementation
    collator = Collator(processor, 4096)
    batches = [batch for _, batch in ValidationBatches(SAMPLES, collator, 2, 0, 1).single()]
    assert [batch["input_ids"].shape[0] for batch in batches] == [1, 1, 1]
    assert [[counts for counts, _ in ValidationBatches(SAMPLES, collator, 2, rank, 2).single()] for rank in (0, 1)] == [
        [True, True], [True, False]
    ]  # fmt: skip  # sharded processes must run in step
    with attention_shares(model) as measure:
        found = [measure(batch, lambda batch=batch: answer_sums(model, batch)).item() for batch in batches]
    assert model.get_decoder().config._attn_implementation == before
    assert not any(layer.self_attn._forward_hooks for layer in model.get_decoder().layers)
    model.get_decoder().set_attn_implementation("eager")
    model.model.merge_schedule = MergeSchedule(())
    for batch, share in zip(batches, found):
        ids = batch["input_ids"][0].tolist()
        video = [i for i, token in enumerate(ids) if token == model.config.video_token_id]
        weights = torch.stack(model(**batch, output_attentions=True, use_cache=False).attentions)[:, 0]
        expected = weights[:, :, video[-1] + 1 :][..., video].sum(-1).mean().item()
        assert share == pytest.approx(expected, rel=1e-6)  # measured worst: 2.1e-7
        assert 0 < share < 1


# -- a run -------------------------------------------------------------------------------------------------------------
def run(folder, resume=False, **fields):
    torch.set_num_threads(1)
    stage = StageConfig(**{**STAGE.as_dict(), "batch_size": 2, "max_steps": 5, "save_steps": 2, **fields})
    return run_stage(stage, tiny_model(), tiny_processor(), Clips(), folder, resume, validation=held_out())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def validation(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation_loss" in row]


def test_a_run_measures_itself_before_during_and_after(whole):
    found = validation(whole)
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4, 5]
    keys = {"loss", "accuracy", "token_accuracy", "loss_no_video", "accuracy_no_video", "token_accuracy_no_video"}
    assert {f"validation_{key}" for key in keys} <= found[0].keys()
    assert all(0 < row["validation_attention_to_video"] < 1 for row in found)
    assert found[-1]["validation_loss"] < found[0]["validation_loss"]
    assert found[0]["validation_loss"] != found[0]["validation_loss_no_video"]
    record = json.loads((whole / "run.json").read_text())["validation"]
    for name, row in (("before", found[0]), ("after", found[-1])):
        assert record[name] == {key: value for key, value in row.items() if key != "epoch"}
    assert line_of(record["after"]).startswith("validation      with the video: loss ")
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in points_of(rows, "validation_loss")] == [0, 1, 2, 3, 4, 5]
    assert {"validation_loss", "validation_loss_no_video"} < PANELS["loss"].keys()


def test_measuring_changes_nothing_that_is_trained(whole, tmp_path):
    stage = StageConfig(**{**STAGE.as_dict(), "batch_size": 2, "max_steps": 5, "save_steps": 2})
    run_stage(stage, tiny_model(), tiny_processor(), Clips(), tmp_path)
    assert "validation" not in json.loads((tmp_path / "run.json").read_text())
    keys = ("step", "loss", "text_loss", "grad_norm")
    plain, measured = ([[row[key] for key in keys] for row in metrics(folder)] for folder in (tmp_path, whole))
    assert plain == measured


class Counted:
    """Held-out samples that record in a file, for all processes, which of them is read."""

    def __init__(self, file):
        self.file = file

    def __len__(self):
        return 12

    def __getitem__(self, index):
        with self.file.open("a") as file:
            print(index, file=file)
        videos = () if index % 3 == 1 else (clip(8, 30, 40, seed=900 + index),)
        return Sample(str(index), videos, (((f"Question {index}?", "yes"),),))


def test_no_clip_is_read_twice_for_one_measurement(tmp_path):
    torch.set_num_threads(1)
    stage = StageConfig(**{**STAGE.as_dict(), "batch_size": 2, "max_steps": 1, "num_workers": 2})
    held = Counted(tmp_path / "read.txt")
    folder = run_stage(stage, tiny_model(), tiny_processor(), Clips(), tmp_path / "out", validation=held)
    times = Counter(held.file.read_text().split())
    assert len(times) == len(held)
    text = {str(i) for i in range(len(held)) if i % 3 == 1}
    assert {times[name] for name in times.keys() - text} == {len(validation(folder))} == {2}


def test_a_finished_run_is_not_measured_again(whole):
    before = validation(whole)
    run(whole, resume=True)
    assert validation(whole) == before
