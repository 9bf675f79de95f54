"""Protects the command line: its surface, its two output channels, its exit codes, and that help stays instant."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from videopanda.cli import app as cli
from videopanda.inference.load import BUNDLED_MODEL

ASSETS = Path(cli.__file__).parents[1] / "assets"
CLIP = str(ASSETS / "demo.mp4")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["videopanda", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def model() -> str:
    return str(BUNDLED_MODEL)


# -- the surface -------------------------------------------------------------------------------------------------------
SURFACE = {
    "": (
        {"--version", "--install-completion", "--show-completion"},
        {"answer", "chat", "convert", "data", "demo", "doctor", "export", "finetune", "init", "train", "scenes"}
        | {"bench", "evaluate", "lab", "find", "plan", "mcp", "pull", "push", "serve", "teach", "verify", "watch"},
    ),
    "answer": (
        {"--model", "--num-frames", "--start", "--end", "--device", "--cache", "--cache-size", "--json"}
        | {
            "--quantize",
            "--max-new-tokens",
            "--fps",
            "--max-visual-tokens",
            "--frames-by",
            "--look-twice",
            "--dtype",
            "--temperature",
            "--seed",
            "--stream",
        }
        | {"--server", "--api-key", "--allow-host", "--explain", "--picture", "--set"},
        {"video", "question"},
    ),
    "watch": (
        {"--every", "--when", "--check", "--model", "--fps", "--max-visual-tokens", "--window", "--last-frames"}
        | {"--follow", "--until", "--device", "--max-new-tokens", "--json"},
        {"source"},
    ),
    "bench": (set(), {"efficiency", "decode", "elva", "generate", "train"}),
    "bench elva": ({"--backbone", "--num-frames", "--rounds", "--device", "--dtype", "--flops-only", "--json"}, set()),
    "bench decode": ({"--rounds", "--minutes", "--json"}, set()),
    "bench generate": ({"--model", "--video", "--rounds", "--max-new-tokens", "--device", "--json"}, set()),
    "bench train": ({"--model", "--clips", "--rounds", "--device", "--json"}, set()),
    "bench efficiency": (
        {
            "--models",
            "--resolution",
            "--rounds",
            "--device",
            "--dtype",
            "--compile",
            "--flops-only",
            "--json",
            "--plot",
        },
        set(),
    ),
    "chat": (
        {"--model", "--num-frames", "--fps", "--start", "--end", "--device", "--dtype", "--max-new-tokens"}
        | {"--temperature", "--seed", "--allow-host", "--quantize", "--set"},
        {"video"},
    ),
    "convert": ({"--allow", "--json"}, {"source", "out"}),
    "doctor": ({"--json"}, set()),
    "data": (set(), {"cache", "check", "features", "label", "recaption", "shard"}),
    "data check": (
        {
            "--media-root",
            "--format",
            "--manifest",
            "--against",
            "--workers",
            "--json",
            "--num-frames",
            "--sampling",
            "--words",
        },
        {"data"},
    ),
    "data shard": (
        {"--media-root", "--format", "--manifest", "--max-bad-share", "--shard-size", "--seed"},
        {"data", "out"},
    ),
    "data features": ({"--model", "--config", "--set"}, {"stage", "out"}),
    "demo": ({"--output"}, set()),
    "plan": (
        {
            "--model",
            "--backbone",
            "--family",
            "--preset",
            "--set",
            "--video",
            "--duration",
            "--resolution",
            "--num-frames",
            "--fps",
        }
        | {"--text-tokens", "--max-new-tokens", "--device", "--dtype", "--fit", "--samples", "--measure", "--json"}
        | {"--quantize"},
        set(),
    ),
    "scenes": (set(), {"make"}),
    "scenes make": ({"--num", "--seed", "--split", "--world", "--long", "--minutes"}, {"out"}),
    "evaluate": (set(), {"inspect", "judge", "needle", "predict", "report", "run", "scenes", "score"}),
    "evaluate run": (
        {"--output", "--media-root", "--model", "--limit", "--condition", "--errata", "--num-frames", "--batch-size"}
        | {"--max-new-tokens", "--device", "--cache", "--json", "--set"},
        {"bench"},
    ),
    "evaluate predict": (
        {
            "--look-twice",
            "--set",
            "--output",
            "--media-root",
            "--model",
            "--condition",
            "--errata",
            "--num-frames",
            "--batch-size",
            "--max-new-tokens",
        }
        | {"--fps", "--max-visual-tokens", "--last-frames", "--frames-by"}
        | {"--prompts", "--seed", "--engine", "--workers", "--cache", "--cache-size", "--json"},
        {"bench", "path"},
    ),
    "evaluate inspect": ({"--errata", "--media-root", "--json"}, {"bench", "path"}),
    "evaluate judge": (
        {
            "--output",
            "--name",
            "--base-url",
            "--model",
            "--import",
            "--prompts",
            "--errata",
            "--concurrency",
            "--retries",
        }
        | {"--timeout", "--price-in", "--price-out", "--dry-run", "--json"},
        {"bench", "path", "predictions"},
    ),
    "evaluate needle": ({"--data", "--output", "--json"}, {"scores"}),
    "evaluate report": ({"--output", "--json"}, {"scores"}),
    "evaluate score": ({"--output", "--scorer", "--errata", "--wordnet", "--json"}, {"bench", "path", "predictions"}),
    "evaluate scenes": (
        {"--model", "--media-root", "--num", "--seed", "--json", "--output", "--no-baselines", "--wordings"}
        | {"--set"},
        set(),
    ),
    "init": (
        {"--backbone", "--model", "--family", "--preset", "--encoder", "--set", "--chat-template", "--seed"},
        {"out"},
    ),
    "export": (set(), {"checkpoint", "out"}),
    "finetune": (
        {"--data", "--model", "--media-root", "--lora", "--quantize", "--set", "--output"},
        set(),
    ),
    "serve": (
        {
            "--set",
            "--model",
            "--host",
            "--port",
            "--api-key",
            "--api-keys",
            "--name",
            "--device",
            "--allow-host",
            "--files",
        }
        | {"--allow-origin", "--public-url", "--media-root", "--quantize"}
        | {
            "--keep",
            "--max-upload",
            "--max-files",
            "--max-new-tokens",
            "--max-frames",
            "--max-pixels",
            "--max-num-seqs",
        }
        | {"--max-queue", "--clip-cache", "--decoders", "--decode-timeout"},
        set(),
    ),
    "train": (
        {"--config", "--set", "--model", "--output", "--dry-run", "--processes", "--chat-template"},
        {"stage"},
    ),
    "find": (
        {"--model", "--num-frames", "--fps", "--start", "--end", "--device", "--dtype", "--allow-host", "--json"},
        {"video", "description"},
    ),
    "mcp": ({"--media-root", "--model", "--device"}, set()),
    "pull": ({"--output"}, {"name"}),
    "push": ({"--scores", "--license", "--limitation", "--private", "--dry-run"}, {"checkpoint", "name"}),
    "teach": (
        {"--question", "--output", "--model", "--lora", "--quantize", "--test-share", "--copies", "--seed", "--set"}
        | {"--json", "--media-root"},
        {"clips"},
    ),
    "verify": ({"--against", "--record", "--json"}, {"checkpoint"}),
}


@pytest.mark.parametrize("verb", SURFACE)
def test_help_names_every_option_and_no_other(run, verb):
    options, words = SURFACE[verb]
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert set(re.findall(r"--[a-z][a-z-]*", out)) == options | {"--help"}
    listed = set(re.findall(r"^│ \*?\s*([a-z]+)(?:\.\.\.)? ", out, flags=re.MULTILINE))
    assert words == listed
    if options and verb:
        assert "Example:  videopanda " + verb in out


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_and_import_load_nothing_heavy():
    heavy = {"torch", "transformers", "numpy", "av", "PIL"}
    assert not heavy & _modules_after("import videopanda")
    helped = "import io, contextlib, videopanda.cli.app\nsys.argv[1:] = ['--help']\n"
    helped += (
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): videopanda.cli.app.main()"
    )
    assert not heavy & _modules_after(helped)


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "videopanda", "answer", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: videopanda answer" in done.stdout


# -- answers -----------------------------------------------------------------------------------------------------------
def test_answer_prints_the_answer_only(run, model):
    code, out, err = run("answer", CLIP, "What colour is the large cross?", "--model", model)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1


def test_json_is_one_object_on_stdout(run, model):
    code, out, err = run("answer", CLIP, "How many?", "--model", model, "--num-frames", "4", "--end", "3", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    expected = {
        "question",
        "answer",
        "frame_times",
        "frame_indices",
        *("visual_tokens", "prompt_tokens", "completion_tokens", "finish_reason"),
        "decoder",
        "timings",
        "model",
        "selection",
    }
    assert set(report) == expected
    assert report["question"] == "How many?"
    assert len(report["frame_times"]) == len(report["frame_indices"]) == 4
    assert max(report["frame_times"]) < 3
    assert set(report["timings"]) == {"decode", "preprocess", "generate"}
    assert report["model"] == model


def test_chat_answers_line_by_line(run, model, monkeypatch):
    lines = iter(["How many?", "Which?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, _ = run("chat", CLIP, "--model", model)
    assert code == 0
    assert out.count("\n") >= 2
    assert next(lines, None) is None


def test_without_a_model_the_bundled_one_is_named(run):
    code, _, err = run("answer", CLIP, "What?")
    assert code == 0
    assert "bundled nano model" in err
    assert "moving shapes" in err


def test_demo_answers_and_shows_the_frames(run, tmp_path):
    code, out, err = run("demo", "--output", str(tmp_path / "demo"))
    assert code == 0
    assert (tmp_path / "demo" / "contact_sheet.png").stat().st_size > 10_000
    assert str(tmp_path / "demo" / "contact_sheet.png") in out.replace("\n", "")
    for item in json.loads((ASSETS / "demo.json").read_text())["questions"]:
        assert item["question"] in out
    assert err.count("\n") == 1


# -- scenes ------------------------------------------------------------------------------------------------------------
def test_scenes_make_writes_a_folder(run, tmp_path):
    code, out, _ = run("scenes", "make", str(tmp_path), "--num", "1", "--seed", "3", "--split", "validation")
    assert code == 0
    assert "annotations.json" in out
    assert (tmp_path / "clips" / "validation-3-0.mp4").exists()


def test_evaluate_scenes_prints_a_table_or_one_object(run, model, tmp_path):
    common = ("evaluate", "scenes", "--model", model, "--num", "12", "--no-baselines", "--output", str(tmp_path))
    code, out, _ = run(*common)
    assert code == 0
    assert "appearance_order" in out
    code, out, _ = run(*common, "--json")
    assert code == 0
    assert json.loads(out)["num_questions"] == 12
    assert (tmp_path / "report.json").exists()
    assert len((tmp_path / "full.jsonl").read_text().splitlines()) == 12


# -- mistakes ----------------------------------------------------------------------------------------------------------
def test_a_mistake_is_one_line_and_exit_code_two(run, model, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a video")
    folder = tmp_path / "folder"
    folder.mkdir()
    for arguments, message in [
        (["answer", "missing.mp4", "What?", "--model", model], "missing.mp4"),
        (["answer", str(text), "What?", "--model", model], "notes.txt"),
        (["answer", CLIP, "", "--model", model], "question is empty"),
        (["answer", CLIP, "What?", "--model", model, "--start", "100"], "start"),
        (["answer", CLIP, "What?", "--model", str(tmp_path / "none")], "no model folder"),
        (["answer", CLIP, "What?", "--model", str(folder)], "not a videopanda checkpoint"),
        (["scenes", "make", str(tmp_path / "out"), "--split", "val"], "train, validation, test"),
        (["evaluate", "scenes", "--model", str(folder)], "not a videopanda checkpoint"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("videopanda: error: ")
        assert message in err
        assert err.count("\n") == 1


def test_a_library_that_cannot_be_loaded_is_one_line(monkeypatch, capsys):
    def broken(**_):
        raise ImportError("libcudnn.so.9: cannot open shared object file", name="_C", path="/site/torch/_C.so")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert re.fullmatch(r"videopanda: error: .*libcudnn\.so\.9.*videopanda doctor .*\n", capsys.readouterr().err)


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch):
    def broken(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()
