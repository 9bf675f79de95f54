"""Protects models named by the Hub: names, cache, redirects, broken transfers, gates, offline mode, pull and push."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, CLIPVisionModel

from hub_server import TOKEN, Hub
from language_models import MEMBERS, write
from official import write_official
from tiny import tiny_model, tiny_processor
from videopanda.hub import BUNDLED, HubName, folder_of, name_of, parse
from videopanda.inference.load import BUNDLED_MODEL

CLIP = BUNDLED_MODEL.parent / "demo.mp4"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def python(code: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)


FETCH = "import sys\nfrom videopanda.hub import folder_of\nprint(folder_of(sys.argv[1], pickled=len(sys.argv) > 2))"
COMMAND = "from videopanda.cli.app import main\nmain()"


def fetched(hub, home, *words, **environment) -> Path:
    done = python(FETCH, hub.environment(home, **environment), *words)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def refused(hub, home, *words, **environment) -> str:
    done = python(FETCH, hub.environment(home, **environment), *words)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name", None, "")),
        ("org/name@v1.0", HubName("org/name", "v1.0", "")),
        ("org/name:a/b", HubName("org/name", None, "a/b")),
        ("org/name@refs/pr/1:a", HubName("org/name", "refs/pr/1", "a")),
        ("nano", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/name:../x", None),
    ],
)
def test_names(text, name):
    assert parse(text) == name
    assert name is None or str(name) == text


def test_a_folder_that_exists_is_no_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse("org/name") is None


def test_bundled_models_have_names_unless_there_is_such_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in BUNDLED:
        assert (folder_of(name) / "model.safetensors").is_file()
    assert folder_of("nano") == BUNDLED_MODEL
    (tmp_path / "nano").mkdir()
    assert folder_of("nano") == Path("nano")
    with pytest.raises(FileNotFoundError, match="no model folder at nanno"):
        folder_of("nanno")


def test_a_folder_of_the_cache_is_called_as_on_the_hub(tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "0123" / "sub"
    folder.mkdir(parents=True)
    assert name_of(folder) == "org/name/sub"
    assert name_of(folder.parent) == "org/name"
    assert name_of(tmp_path) == tmp_path.name


# -- downloads ---------------------------------------------------------------------------------------------------------
def test_only_what_is_needed_is_downloaded_and_once(tmp_path):
    files = {
        "config.json": b"{}",
        "model.safetensors": b"w" * 100,
        "pytorch_model.bin": b"p",
        "code.py": b"c",
        "a/b.json": b"{}",
    }
    with Hub({"org/name": files}) as hub:
        folder = fetched(hub, tmp_path, "org/name")
        assert contents(folder) == {name: files[name] for name in ("config.json", "model.safetensors")}
        count = len(hub.downloads())
        assert fetched(hub, tmp_path, "org/name", "pickled") == folder
        assert len(hub.downloads()) == count
    assert fetched(hub, tmp_path, "org/name", HF_HUB_OFFLINE="1") == folder
    assert "not in the cache" in refused(hub, tmp_path, "org/other", HF_HUB_OFFLINE="1")


def test_revisions_subfolders_and_pickled_weights(tmp_path):
    new = {
        "config.json": b"new",
        "stage/config.json": b"{}",
        "stage/pytorch_model.bin": b"p" * 10,
        "b/config.json": b"{}",
    }
    with Hub({"org/name": {**new}}, revisions={("org/name", "v1"): {"config.json": b"old"}}) as hub:
        assert contents(fetched(hub, tmp_path, "org/name@v1")) == {"config.json": b"old"}
        assert set(contents(fetched(hub, tmp_path, "org/name:stage"))) == {"config.json"}
        assert set(contents(fetched(hub, tmp_path, "org/name:stage", "pickled"))) == {
            "config.json",
            "pytorch_model.bin",
        }
        assert "has no revision v2" in refused(hub, tmp_path, "org/name@v2")
        del hub.repos["org/name"]["config.json"]
        said = refused(hub, tmp_path / "fresh", "org/name")
        assert "choose from org/name:b, org/name:stage" in said


def test_a_broken_transfer_continues_where_it_ended(tmp_path):
    weights = os.urandom(24 << 20)  # parts of 10 MB are written
    with Hub({"org/name": {"config.json": b"{}", "model.safetensors": weights}}, broken=2) as hub:
        folder = fetched(hub, tmp_path, "org/name")
        assert (folder / "model.safetensors").read_bytes() == weights
        ranges = [range_ for method, path, range_ in hub.seen if "/large/" in path and method == "GET"]
    assert len(ranges) == 3
    assert all(range_ == f"bytes={10 << 20}-" for range_ in ranges[1:])


def test_gates_tokens_and_missing_models(tmp_path):
    with Hub({"org/name": {"config.json": b"{}"}}, gated=["org/name"]) as hub:
        assert "org/name is gated: accept its terms" in refused(hub, tmp_path, "org/name")
        assert fetched(hub, tmp_path, "org/name", HF_TOKEN=TOKEN).is_dir()
        assert "no model org/none on the Hub" in refused(hub, tmp_path, "org/none")
    assert "cannot be reached" in refused(hub, tmp_path, "org/elsewhere")


# -- commands ----------------------------------------------------------------------------------------------------------
def test_answer_by_name_and_what_must_be_converted(tmp_path):
    official = {"config.json": json.dumps({"model_type": "llava"}).encode(), "pytorch_model.bin": b"x" * 100}
    with Hub({"org/nano": contents(BUNDLED_MODEL), "org/official": official}) as hub:
        environment = hub.environment(tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1")
        words = ("answer", str(CLIP), "What shape is the red object?", "--model")
        done = python(COMMAND, environment, *words, "org/nano")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        refused = python(COMMAND, environment, *words, "org/official")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "videopanda pull org/official --output DIR" in refused.stderr
        assert "pytorch_model.bin" not in hub.downloads()


NAMES = """
import json, sys
from pathlib import Path

import videopanda
from videopanda.cli.app import main
from videopanda.cli.checks import require_checkpoint
from videopanda.encoders.open import open_teacher

place = sys.argv[1]
for words in (
    ["init", "--backbone", "org/lm", "--preset", "nano", f"{place}/fresh"],
    ["plan", "--backbone", "org/lm", "--preset", "nano", "--device", "cpu"],
    ["convert", "org/official:videopanda_fitu", f"{place}/ours"],
):
    sys.argv = ["videopanda", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
model, _ = videopanda.load("org/mine@v1:sub", device="cpu")
found = {
    "made": [Path(place, name, "config.json").is_file() for name in ("fresh", "ours")],
    "loaded": sum(weight.numel() for weight in model.parameters()),
    "teacher": open_teacher("org/teacher").size,
    "judge": (require_checkpoint(Path("org/lm"), plain=True) / "config.json").is_file(),
}
print("FOUND", json.dumps(found))
"""


def test_every_place_takes_a_name(tmp_path, checkpoint):
    """`--backbone`, `convert`, `--teacher`, `load` with revision and folder, and `--model` of a judge or `lab`."""
    write(tmp_path / "lm", MEMBERS["SmolLM2"])
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=28, patch_size=14)).save_pretrained(tmp_path / "teacher")
    repos = {"org/lm": contents(tmp_path / "lm"), "org/teacher": contents(tmp_path / "teacher"), "org/mine": {}}
    official = contents(write_official(tmp_path / "official"))
    repos["org/official"] = {f"videopanda_fitu/{name}": content for name, content in official.items()}
    mine = {f"sub/{path.name}": path.read_bytes() for path in checkpoint.iterdir() if path.name != "run.json"}
    with Hub(repos, revisions={("org/mine", "v1"): mine}) as hub:
        done = python(NAMES, hub.environment(tmp_path / "home", HF_HUB_DISABLE_PROGRESS_BARS="1"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("FOUND ")[2])
    numel = sum(weight.numel() for weight in tiny_model().parameters())
    assert found == {"made": [True, True], "loaded": numel, "teacher": 16, "judge": True}


def test_push_then_pull(tmp_path, checkpoint):
    stages = [
        {"stage": {"stage": name, "data": f"/somewhere/{name}.jsonl", "num_frames": 4}, "data": {"samples": 7}}
        for name in ("prealign", "finetune")
    ]
    (checkpoint / "run.json").write_text(json.dumps({**stages[1], "start": "mine", "earlier": stages[:1]}))
    taught = {when: {"accuracy": 0.25} for when in ("before", "after", "without_video")}
    taught |= {"question": "Which?", "test_questions": 8, "test_recordings": 8, "kinds": {"unseen recording": 8}}
    (checkpoint / "teach.json").write_text(json.dumps({**taught, "most_frequent_class": 0.5}))
    (checkpoint / "teach_settings.json").write_text(json.dumps({"clips": "/somewhere/clips"}))
    summary = {"benchmark": "custom", "questions": 3, "metrics": {"accuracy": 0.5}, "protocols": []}
    (tmp_path / "s.json").write_text(json.dumps({**summary, "scorers": [{"name": "exact", "version": "1"}]}))
    words = ("push", str(checkpoint), "org/mine", "--scores", str(tmp_path / "s.json"), "--license", "mit")
    with Hub({}) as hub:
        environment = hub.environment(tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1")
        refused = python(COMMAND, environment, *words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "hf auth login" in refused.stderr
        done = python(COMMAND, {**environment, "HF_TOKEN": TOKEN}, *words)
        assert done.returncode == 0, done.stderr
        files = hub.repos["org/mine"]
        assert {"config.json", "model.safetensors", "modeling_videopanda.py", "README.md"} <= set(files)
        assert not {"run.json", "index.html", "metrics.jsonl", "teach.json", "teach_settings.json"} & set(files)
        card = files["README.md"].decode()
        for part in (
            "license: mit",
            "Started from mine.",
            "1. prealign: prealign.jsonl, 7 samples; num_frames 4\n2. finetune: finetune.jsonl, 7 samples",
            "Which?: 25.0% of 8 questions about 8 held-out clips (unseen recording)",
            "| custom | full | 3 | accuracy | 0.5000 |",
            "## Limits",
        ):
            assert part in card
        assert "/somewhere" not in card
        assert all(str(checkpoint).encode() not in content for content in files.values())
        path = "/".join(("", "home", "me", "clips"))
        told = python(COMMAND, environment, *words[:3], "--limitation", f"Only clips of {path}.", "--dry-run")
        assert (told.returncode, f"a path of this machine (README.md: {path}" in told.stderr) == (2, True)
        pulled = python(COMMAND, environment, "pull", "org/mine")
        assert pulled.returncode == 0, pulled.stderr + pulled.stdout
        assert "ready:  videopanda answer CLIP QUESTION --model org/mine" in pulled.stdout


def test_pull_an_official_checkpoint(tmp_path):
    """Downloaded with a broken transfer, converted and verified; a second pull only verifies again."""
    files = {
        f"videopanda_fitu/{name}": content
        for name, content in contents(write_official(tmp_path / "official", shards=1)).items()
    }
    folder = tmp_path / "ours"
    words = ("pull", "org/video-panda:videopanda_fitu", "--output", str(folder))
    with Hub({"org/video-panda": files}, broken=1) as hub:

        def large() -> list[str]:
            return [path for method, path, _ in hub.seen if "/large/" in path and method == "GET"]

        environment = hub.environment(tmp_path / "home", HF_HUB_DISABLE_PROGRESS_BARS="1")
        refused = python(COMMAND, environment, *words[:2])
        assert refused.returncode == 2
        assert "choose a folder for the converted one with --output DIR" in refused.stderr
        assert not large()  # before gigabytes are downloaded
        done = python(COMMAND, environment, *words)
        assert done.returncode == 0, done.stderr + done.stdout
        assert len(large()) == 2  # the first transfer broke
        for part in ("converting org/video-panda:videopanda_fitu", "passed", f"--model {folder}"):
            assert part in done.stdout
        written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        again = python(COMMAND, environment, *words)
        assert again.returncode == 0, again.stderr
        assert "converting" not in again.stdout
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
        assert len(large()) == 2
