"""The real lmms-eval runs our model on our tasks. `make test-lmms-eval` installs it; elsewhere this is skipped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_files import question, write_json

import videopanda
from media import write_video
from tiny import tiny_model, tiny_processor
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.evaluation.scoring.score import score_file

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed here: make test-lmms-eval")
TASKS = Path(videopanda.__file__).parent / "evaluation" / "lmms_eval_tasks"


@pytest.fixture
def accuracy(tmp_path):
    """Our own commands' accuracy of a small model in `tmp_path`, with videos of which one is missing."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    data = tmp_path / "data" / "msvd-qa"
    write_json(data / "test_q.json", [question("abc"[i % 3], f"what {i}?", i) for i in range(6)])
    answers = [{"answer": "x", "question_id": i} for i in range(6)]
    write_json(data / "test_a.json", answers)
    (data / "videos").mkdir()
    for name in "ab":  # the third one is missing
        write_video(data / "videos" / f"{name}.mp4", range(20), fps=10)
    job = PredictJob("msvd-qa", data, data / "videos", tmp_path / "model", num_frames=4, batch_size=2)
    predict(job, tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    # Half of the answers are what the model says, so that the accuracy is neither 0 nor 1.
    said = {row["id"]: row["prediction"] for row in rows if row["prediction"]}
    for i, id_ in enumerate(sorted(said)):
        answers[int(id_)]["answer"] = said[id_] if i % 2 else "x"
    write_json(data / "test_a.json", answers)
    ours = score_file("msvd-qa", data, tmp_path / "p.jsonl", tmp_path / "s.jsonl")
    return ours["metrics"]["accuracy"]


def lmms_eval(folder, model, arguments):
    """The accuracy that lmms-eval finds."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--tasks", "msvd_qa_videopanda"]
    command += ["--model_args", arguments, "--batch_size", "2", "--device", "cpu"]
    command += ["--include_path", str(TASKS), "--output_path", str(folder / "out")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = list((folder / "out").rglob("*results.json"))
    assert len(results) == 1, (done.stdout[-1000:], done.stderr[-3000:])
    return json.loads(results[0].read_text())["results"]["msvd_qa_videopanda"]["accuracy,none"]


@pytest.mark.slow
def test_lmms_eval_gets_the_accuracy_of_our_own_commands(tmp_path, accuracy):
    found = lmms_eval(tmp_path, "videopanda", f"pretrained={tmp_path / 'model'},num_frames=4")
    assert found == pytest.approx(accuracy, abs=1e-6)  # ours is rounded


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lmms_eval_gets_it_over_http(tmp_path, accuracy):
    """Its `openai` backend sends file:// URLs and the number of frames in `media_io_kwargs`."""
    pytest.importorskip("fastapi", reason="serving is not installed here")
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from live import Server

    roots = ["--media-root", str(tmp_path / "data")]
    server = Server(tmp_path / "files", "--model", str(tmp_path / "model"), *roots)
    try:
        options = f"model_version=model,base_url={server.url}/v1,api_key=none,max_retries=1,timeout=300"
        found = lmms_eval(tmp_path, "openai", f"{options},pass_video_url=True,max_frames_num=4")
        seen = server.metric('videopanda_requests_total{path="/v1/chat/completions",status="200"}')
    finally:
        server.stop()
    assert seen == 4
    assert found == pytest.approx(accuracy, abs=1e-6)
