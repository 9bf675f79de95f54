"""Protects predictions: what is shown and asked, failures as rows, resuming after any end, sharing of work."""

import hashlib
import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_files import WRITERS, question, write_json

from command import run
from media import read_number, write_video
from videopanda.data.growing_file import only_writer
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.videos import Videos
from videopanda.evaluation.conditions import CONDITIONS, asked, show
from videopanda.evaluation.predict import PredictJob, Predictor, finish, parts, predict
from videopanda.evaluation.predictions import read_predictions
from videopanda.evaluation.prompts import Prompts, read_prompts
from videopanda.inference.answer import ask, question_messages
from videopanda.inference.load import load


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """Twelve questions about four videos; the questions about one of them are not next to each other."""
    folder = tmp_path_factory.mktemp("bench")
    names = ["a", "b", "a", "c", "a", "d", "b", "b", "c", "c", "d", "d"]
    write_json(folder / "test_q.json", [question(n, f"what is it, {i}?", i) for i, n in enumerate(names)])
    write_json(folder / "test_a.json", [{"answer": "x", "question_id": i} for i in range(len(names))])
    (folder / "videos").mkdir()
    for first, name in enumerate("abcd"):
        write_video(folder / "videos" / f"{name}.mp4", range(100 * first, 100 * first + 20), fps=10)
    return folder


@pytest.fixture
def job(bench, model) -> PredictJob:
    return PredictJob("msvd-qa", bench, bench / "videos", model, batch_size=3, num_frames=4, max_new_tokens=4)


@pytest.fixture(scope="module")
def whole(bench, model, tmp_path_factory) -> bytes:
    """The file of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "p.jsonl"
    job = PredictJob("msvd-qa", bench, bench / "videos", model, batch_size=3, num_frames=4, max_new_tokens=4)
    assert predict(job, out)["complete"]
    return out.read_bytes()


# -- what is asked -----------------------------------------------------------------------------------------------------
def test_prompts():
    choice = Item("1", "v", "Which {one}?", "choice", options=("a {cup}", "dog"))
    assert Prompts().ask(choice) == "Which {one}?\nA. a {cup}\nB. dog\nAnswer with the letter of the right option."
    assert Prompts().ask(Item("1", "v", "who?", "short_answer")) == "who?"
    with_lines = Prompts().ask(Item("1", "v", "who?", "short_answer"), ["Hi.", "I am {question}."])
    assert with_lines == "Subtitles of the video:\nHi.\nI am {question}.\nwho?"
    assert "who falls." in Prompts().ask(Item("1", "v", "who falls.", "grounding"))


def test_own_prompts(tmp_path):
    own = read_prompts(write_json(tmp_path / "p.json", {"yes_no": "{question} Yes or no?"}))
    assert (own.yes_no, own.choice) == ("{question} Yes or no?", Prompts().choice)
    assert own.sha256 != Prompts().sha256 == read_prompts(None).sha256
    for content, message in [
        ({"choose": "x"}, "unknown template 'choose'"),
        ({"choice": "{question}"}, r"contain \{options\}"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_prompts(write_json(tmp_path / "bad.json", content))


# -- what is shown -----------------------------------------------------------------------------------------------------
def numbers(bench, condition, name="b", seed=0):
    """The numbers that the shown frames carry."""
    videos = Videos(bench / "videos")
    (entry,) = asked((Item("1", name, "?", "short_answer"), *_other(condition)), videos, condition)[:1]
    shown = show(entry.source, condition, 4, "uniform", seed)
    return [read_number(frame) for frame in shown.clip.frames], shown


def _other(condition):
    return [Item("2", "d", "?", "short_answer")] if condition == "wrong_video" else []


def test_conditions(bench):
    assert numbers(bench, "full")[0] == [102, 107, 112, 117]
    assert numbers(bench, "reversed")[0] == [117, 112, 107, 102]
    assert numbers(bench, "one_frame")[0] == [112] * 4
    assert numbers(bench, "wrong_video")[0] == [302, 307, 312, 317]
    mixed, shown = numbers(bench, "shuffled")
    assert sorted(mixed) == [102, 107, 112, 117] != mixed
    assert [100 + i for i in shown.indices] == mixed
    assert shown.times == tuple(i / 10 for i in shown.indices)
    assert list(shown.clip.timestamps) == [0.2, 0.7, 1.2, 1.7]  # places keep their times
    assert mixed == numbers(bench, "shuffled")[0]
    assert {tuple(numbers(bench, "shuffled", seed=seed)[0]) for seed in range(5)} != {tuple(mixed)}


def test_the_wrong_video_is_the_next_other_one(bench):
    items = tuple(Item(str(i), name, "?", "short_answer") for i, name in enumerate("abcx"))
    found = asked(items, Videos(bench / "videos"), "wrong_video")
    assert [entry.source.name for entry in found] == ["b.mp4", "c.mp4", "a.mp4", "x"]
    with pytest.raises(ValueError, match="needs at least two videos"):
        asked(items[:1], Videos(bench / "videos"), "wrong_video")
    with pytest.raises(ValueError, match="unknown condition 'blind'; choose from full"):
        asked(items, Videos(bench / "videos"), "blind")


def test_questions_about_a_part_see_the_part(bench):
    item = Item("1", "a", "?", "short_answer", start=1.0, end=2.0)
    (entry,) = asked((item,), Videos(bench / "videos"), "full")
    shown = show(entry.source, "full", 2, "uniform", 0)
    assert ([read_number(frame) for frame in shown.clip.frames], shown.clip.duration) == ([12, 17], pytest.approx(1.0))


# -- rows --------------------------------------------------------------------------------------------------------------
def test_a_row_tells_all_and_answers_are_those_of_ask(job, whole, model, bench):
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in rows] == ["0", "2", "4", "1", "6", "7", "3", "8", "9", "5", "10", "11"]
    row = rows[3]
    assert (row["video"], row["frame_indices"], row["frame_times"]) == ("b.mp4", [2, 7, 12, 17], [0.2, 0.7, 1.2, 1.7])
    assert row["decoder"].split()[0] in ("pyav", "torchcodec")
    protocol = row["protocol"]
    assert (protocol["benchmark"], protocol["condition"], protocol["num_frames"]) == ("msvd-qa", "full", 4)
    assert protocol["generation"] == {"do_sample": False, "max_new_tokens": 4, "batch_size": 3}
    assert len({row["prompt_sha256"] for row in rows}) == 12
    network, processor = load(model)
    assert protocol["vision_parameters"] == sum(
        p.numel() for name, p in network.named_parameters() if name.startswith(("model.stab.", "model.projector."))
    )
    (answer,) = ask(network, processor, bench / "videos/b.mp4", ["what is it, 1?"], num_frames=4, max_new_tokens=4)
    assert row["prediction"] == answer.answer


def test_a_clip_that_is_read_once_for_many_questions_gives_the_answers_of_separate_runs(job, whole, tmp_path):
    predict(replace(job, batch_size=1), tmp_path / "apart.jsonl")
    together = {row["id"]: row["prediction"] for row in map(json.loads, whole.splitlines())}
    assert {row.id: row.prediction for row in read_predictions(tmp_path / "apart.jsonl")} == together


@pytest.mark.parametrize("condition", ["full", "shuffled"])
def test_a_cache_changes_no_answer(job, condition, tmp_path):
    job = replace(job, condition=condition)
    predict(job, tmp_path / "plain.jsonl")
    kept = replace(job, cache=tmp_path / "tokens", cache_bytes=10_000_000)
    for name in ("first.jsonl", "second.jsonl"):
        predict(kept, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
        assert len(list((tmp_path / "tokens").glob("*/*.safetensors"))) == 4  # one for each clip


def test_without_the_video_the_prompt_still_tells_its_length(job, model, bench, tmp_path):
    """Else the difference to the full condition would not be that of looking."""
    telling = tmp_path / "telling"
    network, processor = load(model)
    processor.time_prompt = True
    network.save_pretrained(telling)
    processor.save_pretrained(telling)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes((bench / "videos" / "a.mp4").read_bytes())
    blind = replace(job, condition="no_video", videos=tmp_path / "videos")
    assert predict(blind, tmp_path / "p.jsonl")["answered"] == 12  # those about missing videos, too
    assert predict(replace(blind, model=telling), tmp_path / "q.jsonl")["answered"] == 12

    def prompts(name):
        return {row.id: row.prompt_sha256 for row in read_predictions(tmp_path / name)}

    def prompt(text):
        messages = question_messages(processor, text, has_video=False)
        whole = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    assert prompts("p.jsonl")["0"] == prompt("what is it, 0?")
    assert prompts("q.jsonl")["0"] == prompt("2.0 seconds: what is it, 0?")
    assert prompts("q.jsonl")["1"] == prompt("what is it, 1?")  # its video is missing


@pytest.mark.parametrize("condition", CONDITIONS[1:])
def test_baselines_answer_every_question(job, condition, tmp_path):
    report = predict(replace(job, condition=condition), tmp_path / "p.jsonl")
    assert (report["answered"], report["complete"]) == (12, True)
    rows = list(read_predictions(tmp_path / "p.jsonl"))
    assert {row.protocol.condition for row in rows} == {condition}
    assert all(bool(row.frame_times) == (condition != "no_video") for row in rows)


def test_failures_are_rows(job, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", range(20), fps=10)
    (videos / "b.mp4").write_text("no video")
    write_video(videos / "d.mp4", range(20), fps=10)
    write_json(
        tmp_path / "test_q.json",
        [
            question("a", "what?", "1"),
            question("b", "what?", "2"),
            question("c", "what?", "3"),
            question("d", "what is <video>?", "4"),
            question("d", "what? " * 3000, "5"),
            question("d", "what?", "6"),
        ],
    )
    write_json(tmp_path / "test_a.json", [{"answer": "x", "question_id": str(i)} for i in range(1, 7)])
    report = predict(replace(job, path=tmp_path, videos=videos, batch_size=6), tmp_path / "p.jsonl")
    assert report["failures"] == {"error": ["4", "5"], "missing_video": ["3"], "unreadable_video": ["2"]}
    rows = {row.id: row for row in read_predictions(tmp_path / "p.jsonl")}
    assert rows["1"].prediction is not None
    assert rows["6"].prediction is not None
    assert "must not contain <video>" in rows["4"].reason
    assert "exceed the" in rows["5"].reason
    assert str(tmp_path) not in (tmp_path / "p.jsonl").read_text()  # equal on every machine


def test_subtitles_of_the_frames_shown_are_asked_with(model, tmp_path):
    folder = WRITERS["video-mme-subtitles"](tmp_path)
    write_video(tmp_path / "INVENTED_01.mp4", range(40), fps=10)  # subtitles from 1 to 2.5 s
    hashes = {}
    for bench in ("video-mme", "video-mme-subtitles"):
        job = PredictJob(bench, folder, tmp_path, model, num_frames=4, max_new_tokens=2)
        report = predict(job, tmp_path / f"{bench}.jsonl")
        assert report["failures"] == {"missing_video": ["902-1"]}
        hashes[bench] = next(iter(read_predictions(tmp_path / f"{bench}.jsonl"))).prompt_sha256
    assert len(set(hashes.values())) == 2
    table = next(folder.rglob("*.parquet"))  # alone: the subtitles lie in another folder
    with pytest.raises(ValueError, match="no subtitles below"):
        predict(PredictJob("video-mme-subtitles", table, tmp_path, model), tmp_path / "q.jsonl")


# -- interruptions -----------------------------------------------------------------------------------------------------
def predict_up_to(job: PredictJob, out: Path, most: int | None) -> None:
    """Predict in one thread. At the byte behind `most` the kernel ends this process, wherever it is."""
    torch.set_num_threads(1)
    if most is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    predict(job, out)


def test_killed_twenty_times_the_file_is_the_same(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    rng = random.Random(0)
    context = multiprocessing.get_context("forkserver")  # fresh interpreters would spend their lives importing
    context.set_forkserver_preload(["videopanda.evaluation.predict"])
    for number in range(20):
        if out.exists() and rng.random() < 0.3:  # what a crash of the machine leaves: any part of the file
            out.write_bytes(out.read_bytes()[: rng.randrange(len(whole))])
        if out.exists() and out.stat().st_size > len(whole) - 2:
            out.write_bytes(whole[: rng.randrange(len(whole) - 1)])
        size = out.stat().st_size if out.exists() else 0
        at_a_byte = number % 2 == 1
        most = rng.randrange(size + 1, len(whole)) if at_a_byte else None
        child = context.Process(target=predict_up_to, args=(replace(job), out, most))
        child.start()
        if at_a_byte:
            child.join()
            assert child.exitcode == -signal.SIGXFSZ
        else:  # at a moment: while it starts, works, or is done already
            child.join(rng.uniform(0.0, 0.4))
            child.kill()
            child.join()
    assert predict(job, out)["complete"]
    assert out.read_bytes() == whole


def test_a_file_cut_anywhere_is_completed(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:cut])
        assert predict(job, out)["complete"]
        assert out.read_bytes() == whole


def test_a_file_that_another_process_writes_is_refused(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    with only_writer(out):
        code, printed, err = run(*arguments(job, out))
        assert (code, printed) == (2, "")
        assert f"another process is writing {out}" in err.strip().splitlines()[-1]
    assert predict(job, out)["complete"]
    assert out.read_bytes() == whole


def test_a_complete_file_is_left_alone(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_bytes(whole)
    before = out.stat().st_mtime_ns
    assert predict(job, out)["answered"] == 12
    assert out.stat().st_mtime_ns == before


def test_files_of_other_runs_are_refused(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_bytes(whole)
    with pytest.raises(ValueError, match=r"predictions of another run \(num_frames 4\): choose another"):
        predict(replace(job, num_frames=8), out)
    with pytest.raises(ValueError, match=r"another run \(condition 'full'\)"):
        predict(replace(job, condition="no_video"), out)
    out.write_text("something else\n")
    with pytest.raises(ValueError, match="not written by this command"):
        predict(job, out)
    assert out.read_text() == "something else\n"


# -- several processes -------------------------------------------------------------------------------------------------
def test_shares_are_joined_whatever_the_number_of_processes(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    first = predict(job, out, rank=1, world_size=2)
    assert (first["complete"], first["questions"], first["answered"]) == (False, 12, 6)
    assert not out.exists()
    # The other one died; three go on, and what is there is not asked again.
    for rank in (0, 2, 1):
        report = predict(job, out, rank=rank, world_size=3)
    assert report["complete"]
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_joining_twice_does_no_harm(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    for rank in (0, 1):
        predict(job, out, rank=rank, world_size=2)
    protocol = next(iter(read_predictions(out))).protocol
    assert len(finish(out, job, protocol)) == 12
    assert out.read_bytes() == whole


def arguments(job: PredictJob, out: Path) -> list[str]:
    given = {"--media-root": job.videos, "--model": job.model, "--output": out, "--num-frames": 4, "--batch-size": 3}
    given["--max-new-tokens"] = 4
    options = [str(word) for pair in given.items() for word in pair]
    return ["evaluate", "predict", job.bench, str(job.path), *options]


@pytest.mark.slow
def test_torchrun_shares_the_work(job, whole, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "videopanda", *arguments(job, tmp_path / "p.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("12 questions, answered 12") in (1, 2)  # told by every process that saw the end
    assert (tmp_path / "p.jsonl").read_bytes() == whole
    assert not list(tmp_path.glob("*.rank-*"))


@pytest.mark.slow
def test_ray_shares_the_work(job, whole, tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "videopanda", *arguments(job, tmp_path / "p.jsonl"), "--engine", "ray"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["answered"] == 12
    assert (tmp_path / "p.jsonl").read_bytes() == whole


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_predicts(job, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    code, printed, _ = run(*arguments(job, out))
    assert (code, printed.strip()) == (0, f"12 questions, answered 12: {out}")
    assert out.read_bytes() == whole
    code, printed, _ = run(*arguments(job, out), "--json")
    assert json.loads(printed) == {"questions": 12, "answered": 12, "failures": {}, "complete": True, "out": str(out)}
    for extra, message in [
        (["--engine", "spark"], "--engine must be local or ray, got 'spark'"),
        (["--condition", "blind"], "unknown condition"),
        (["--media-root", str(tmp_path / "none")], "no such folder"),
        (["--num-frames", "8"], "another run (num_frames 4)"),
    ]:
        code, printed, err = run(*arguments(job, out), *extra)
        assert (code, printed) == (2, "")
        assert message in err.strip().splitlines()[-1]


def test_subtitles_with_times_of_the_whole_film_are_asked_with(model, tmp_path):
    folder = WRITERS["longvideobench-subtitles"](tmp_path)
    write_video(tmp_path / "INVENT00001.mp4", range(40), fps=10)
    hashes = {}
    for bench in ("longvideobench", "longvideobench-subtitles"):
        job = PredictJob(bench, folder, tmp_path, model, num_frames=4, max_new_tokens=2)
        assert predict(job, tmp_path / f"{bench}.jsonl")["complete"]
        first, _ = read_predictions(tmp_path / f"{bench}.jsonl")
        hashes[bench] = first.prompt_sha256
        asked = next(question for batch in job.batches for question in batch)
        shown = show(asked.source, "full", 4, "uniform", 0)
        predictor = Predictor(job)
        lines = predictor._subtitles(asked.item, shown)
        assert lines == (["Follow the star."] if bench == "longvideobench-subtitles" else [])
    assert len({*hashes.values()}) == 2


@pytest.mark.parametrize("content", [b"my notes", b'{"id": "1"}\nnotes without an end', b'{"question": "?"}\n'])
def test_output_is_never_a_file_of_something_else(job, tmp_path, content):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"not written by this command|not predictions"):
        predict(job, tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == content


def test_parts_of_a_file_with_brackets_in_its_name_are_found(tmp_path):
    (tmp_path / "a[1].rank-0.jsonl").touch()
    (tmp_path / "a1.rank-0.jsonl").touch()
    assert [part.name for part in parts(tmp_path / "a[1].jsonl")] == ["a[1].rank-0.jsonl"]
