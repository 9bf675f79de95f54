"""Protects a new user's patience: plausible mistakes end in one line that names the fix, most before torch is imported.

The table is a list of mistakes that somebody made in an afternoon. DEMO is the bundled clip, NANO the bundled model.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import wave
from typing import get_args

import pytest
from PIL import Image

from videopanda.inference.load import BUNDLED_MODEL

NANO = BUNDLED_MODEL
DEMO = BUNDLED_MODEL.parent / "demo.mp4"

# What was typed, and what must be in the line. A line of None: no mistake; exit code 0.
QUICK = [
    (1, "--version", None),
    (2, "-h", None),
    (3, "anwser DEMO What?", r"No such command 'anwser'.*Did you mean 'answer'"),
    (4, "ask DEMO What?", r"No such command 'ask'; choose from answer, bench"),
    (5, "answer nothere.mp4 What?", r"no video at nothere\.mp4"),
    (6, "answer DEMO", r"Missing argument 'question'; see  videopanda answer --help"),
    (7, "answer What DEMO", r"no video at What: the video comes first, then the question"),
    (8, "answer DEMO What? --model /nope/dir", r"no model folder at /nope/dir"),
    (9, "answer DEMO What? --model jh-yi/Video-Panda-7B", r"jh-yi/Video-Panda-7B is not in the cache"),
    (10, "answer DEMO What? --model emptydir", r"emptydir is not a videopanda checkpoint: it has no config\.json"),
    (12, "answer DEMO What? --fps 2 --num-frames 3", r"--num-frames and --fps are mutually exclusive"),
    (13, "answer DEMO What? --max-tokens 5", r"No such option: --max-tokens.*--max-new-tokens"),
    (14, "answer DEMO What? --start 3 --end 1", r"end \(1\.0 s\) must be later than start \(3\.0 s\)"),
    (15, "answer DEMO What? --start 30", r"start is 30\.0 s, and the video lasts only 4\.000 s"),
    (16, "answer DEMO What? --start noon", r"expected a time in seconds, or one such as 1:30, got 'noon'"),
    (17, "answer DEMO What? --dtype int8", r"--dtype must be float32, bfloat16, float16 or auto, got 'int8'"),
    (17, "answer DEMO What? --quantize int7", r"--quantize must be int8 or nf4, got 'int7'"),
    (17, "answer ftp://x.org/a.mp4 What?", r"only http and https URLs can be fetched, got 'ftp://x\.org/a\.mp4'"),
    (17, "demo --output empty.mp4", r"empty\.mp4 is a file: choose a folder"),
    (38, "train finetune --config nano --model NANO --output empty.mp4", r"empty\.mp4 is a file"),
    (18, "answer DEMO What? --num-frames 0", r"--num-frames must be at least 1"),
    (18, "answer DEMO What? --num-frames abc", r"--num-frames must be an integer"),
    (18, "answer DEMO What? --temperature warm", r"--temperature must be a number"),
    (18, "answer DEMO What? --seed 99999999999999999999", r"--seed must be at most 9223372036854775807"),
    (18, "answer -a.mp4 What?", r"a file whose name begins with a dash is written \./-a\.mp4"),
    (18, "answer DEMO What? --cache-size 3GiB", r"--cache-size requires --cache"),
    (18, "evaluate predict custom rows.json --output p.jsonl --workers 3", r"--workers requires --engine ray"),
    (18, "watch DEMO --every 1s What? --check 2s", r"--check requires --when"),
    (
        18,
        "watch DEMO --every 1s What? --last-frames 2 --window 3",
        r"--last-frames keeps no earlier frames: omit --window$",
    ),
    (19, "answer DEMO EMPTY", r"the question is empty"),
    (20, "answer tone.wav What?", r"tone\.wav.*no video stream"),
    (22, "answer fake.mp4 What?", r"fake\.mp4.*it is a text file, not a video"),
    (23, "answer empty.mp4 What?", r"empty\.mp4.*the file is empty"),
    (24, "answer emptydir What?", r"emptydir.*no images"),
    (
        25,
        "answer https://example.com/a.mp4 What?",
        r"fetched only from hosts that you allow.*--allow-host example\.com",
    ),
    (25, "answer https://127.0.0.1/a.mp4 What? --allow-host 127.0.0.1", r"does not resolve to public addresses only"),
    (25, "answer DEMO What? --server http://127.0.0.1:9", r"no server at http://127\.0\.0\.1:9: start one"),
    (27, "serve --port 99999", r"--port must be at most 65535"),
    (27, "serve --port BUSY", r"cannot listen on 127\.0\.0\.1:[0-9]+: .*in use; choose another --port"),
    (27, "serve --files photos --port FREE", r"photos is neither empty nor a folder of uploads"),
    (27, "serve --media-root nothere --port FREE", r"--media-root nothere: no such folder"),
    (27, "serve --api-keys nothere", r"--api-keys nothere: no such file"),
    (27, "serve --api-keys empty.mp4", r"empty\.mp4 contains no API key"),
    (28, "train fintune --config nano", r"unknown stage 'fintune': choose one of language, prealign, spatial"),
    (
        29,
        "train finetune --config nanoo --output o1",
        r"--config nanoo: neither a file nor one of paper, scripts, nano",
    ),
    (35, "train finetune --config nano --model NANO --processes 2", r"--processes requires --dry-run"),
    (39, "data check rows.json --media-root nothere", r"--media-root nothere: no such folder"),
    (39, "data recaption rows.json --output c.jsonl --base-url x --name y", r"--base-url must be a URL such as http"),
    (39, "finetune --data clip.mp4 --model NANO --output o2", r"clip\.mp4 is a video, not JSON"),
    (39, "finetune --data rows_trailing.json --model NANO --output o2", r"rows_trailing\.json.*not valid JSON at byte"),
    (40, "finetune --data rows_missing.json --model NANO --output o2", r"no video at a\.mp4: pass .*--media-root"),
    (
        41,
        "finetune --data rows_unknown.json --model NANO --output o2",
        r"the format of a row .* is not known: pass --format",
    ),
    (34, "train finetune --config nano --model NANO --output o1 --set max_steps", r"write it as key=value"),
    (35, "train finetune --config nano --model NANO --out o1", r"No such option: --out.*--output"),
    (42, "finetune --data nothere.json --model NANO --output o2", r"no such file or folder: nothere\.json"),
    (43, "finetune --data rows.json --output o2", r"Missing option '--model'; see  videopanda finetune --help"),
    (44, "evaluate predict msvdqa . --output x.jsonl", r"unknown benchmark 'msvdqa'; did you mean 'msvd-qa'\?"),
    (46, "evaluate score own rows.json nothere.jsonl --output s.jsonl", r"nothere\.jsonl|unknown benchmark"),
    (46, "evaluate score custom rows.json nothere.jsonl --output s.jsonl", r"no such file or folder: nothere\.jsonl"),
    (46, "evaluate judge custom rows.json rows.json --output s.jsonl", r"one of --name, --model and --import"),
    (46, "evaluate judge custom rows.json rows.json --output s.jsonl --model . --base-url http://x/v1", r"omit it"),
    (46, "evaluate judge custom rows.json rows.json --output s.jsonl --model . --retries 0", r"they require --name"),
    (46, "evaluate judge custom rows.json rows.json --output s.jsonl --import . --timeout 3", r"they require --name"),
    (46, "evaluate judge custom rows.json rows.json --output s.jsonl --import . --dry-run", r"--import calls no judge"),
    (46, "evaluate scenes --wordings fancy", r"--wordings must be written, held-out or a file, got 'fancy'"),
    (
        46,
        "data recaption rows.json --output c.jsonl --base-url http://h/v1 --name n --send all",
        r"--send must be frames or video",
    ),
    (48, "data label emptydir out --question Which?", r"emptydir contains 0 classes of clips.*at least 2 are needed"),
    (49, "scenes make NANO --num 2", r"contains other files: choose a new folder"),
    (51, "init --backbone llama2 out/f", r"no language model at llama2: pass a folder, or a Hub name OWNER/llama2"),
    (52, "export NANO NANO", r"already exists: choose a new folder"),
    (54, "verify emptydir", r"emptydir is not a videopanda checkpoint: it has no config\.json"),
    (54, "verify cut", r"cut/model\.safetensors is damaged or truncated: download or copy it again"),
    (30, "train finetune --config trailing.json --output o1", r"trailing\.json is not valid JSON"),
    (31, "train finetune --config nano --output o1", r"needs a model to start from: pass --model DIR"),
    (55, "plan --duration 30 --num-frames 8 --fps 1", r"--num-frames and --fps are mutually exclusive"),
    (57, "plan --duration abc", r"--duration: expected a time in seconds, or one such as 1:30, got 'abc'"),
    (59, "bench speed", r"No such command 'speed'; choose from decode, efficiency, elva, generate, train"),
    (
        60,
        "answer DEMO clip.mp4 What?",
        r"clip\.mp4 is a file, not a question: a command answers questions about one video",
    ),
    (61, "answer DEMO What shape is it?", r'write the question in quotes: "What shape is it\?"'),
    (61, "find DEMO the circle is white", r"unexpected extra argument.*write a text of several words in quotes"),
    (
        62,
        "answer --video DEMO What?",
        r"No such option: --video; write only its value:  videopanda answer VIDEO QUESTION",
    ),
    (62, "answer DEMO --question What?", r"No such option: --question; write only its value"),
    (63, "answer nothere.mp4 LONG", r"no video at nothere\.mp4$"),
    (64, "answer file:///a%20b.mp4 What?", r"pass the path of the file instead of its URL: /a b\.mp4"),
    (65, "answer DEMO What? --model fake.mp4", r"fake\.mp4 is a file: pass the folder of the model"),
    (65, "answer DEMO What? --model nanoo", r"no model folder at nanoo.*one of nano, nano-long, nano-elva"),
    (65, "pull https://huggingface.co/org/name", r"is a page: pass the name of the model, org/name"),
    (65, "serve --model https://huggingface.co/org/name", r"is a page: pass the name of the model, org/name"),
    (11, "answer DEMO What? --device gpu", r"unknown device 'gpu': use cpu, cuda, cuda:1 or mps"),
    (66, "serve --device 0", r"unknown device '0': use cpu, cuda, cuda:1 or mps"),
    (67, "answer DEMO What? --explain --picture why.txt", r"--picture must be a file such as why\.png.*'why\.txt'"),
    (67, "answer DEMO What? --explain --picture emptydir", r"--picture must be a file.*'emptydir'"),
    (68, "serve --api-keys clip.mp4", r"clip\.mp4 is not a text file of API keys"),
    (69, "train finetune --config nano --model NANO --lr 1e-4", r"a setting of training is written  --set lr=VALUE"),
    (69, "finetune --data rows.json --model NANO --output o --resume", r"the same command resumes an interrupted run"),
    (69, "finetune --data rows.json --model NANO --output o --max-steps 3", r"written  --set max_steps=VALUE"),
    (70, "evaluate run rows.json --output e", r"write NAME=rows\.json, such as custom=rows\.json"),
    (70, "evaluate run custom=rows.json --output e --media-root mvbech=.", r"mvbech is none of the benchmarks"),
    (70, "evaluate run custom=rows.json --output empty.mp4", r"empty\.mp4 is a file: choose a folder"),
    (71, "pull org/name --output empty.mp4", r"empty\.mp4 is a file: choose a folder"),
    (72, "answer EMPTY What?", r"the video is empty: pass a file"),
    (73, "answer DEMO What? --cache empty.mp4", r"empty\.mp4 is a file: choose a folder"),
    (73, "answer DEMO What? --cache emptydir --cache-size lots", r"expected a size such as 24GiB, got 'lots'"),
    (74, "watch DEMO --when EMPTY", r"the question of --when is empty"),
    (69, "finetune --data rows.json --model NANO --out o", r"No such option: --out.*--output"),
    (75, "answer DEMO “What moves?”", r"“What begins with “, which is no quotation mark for the shell"),
    (75, "answer DEMO ‘What moves?’", r"‘What begins with ‘, which is no quotation mark for the shell"),
    (76, "answer DEMO What? —fps 2", r"—fps begins with a long dash: type --fps"),
    (76, "answer DEMO What? –-fps=2", r"–-fps=2 begins with a long dash: type --fps=2"),
    (77, "answer DEMO What? --model NOTHING", r"the value after --model is empty: write one, or omit --model"),
    (78, "answer notes.txt What?", r"notes\.txt.*it is a text file, not a video"),
    (79, "train finetune --config twice.json --output o1", r"twice\.json: 'max_steps' is given twice"),
    (80, "answer pic.png What? --explain --picture pic.png", r"--picture pic\.png would replace the video"),
    (81, "answer DEMO What? --device meta", r"unknown device 'meta': use cpu, cuda, cuda:1 or mps"),
    (81, "answer DEMO What? --device xpu", r"unknown device 'xpu': use cpu, cuda, cuda:1 or mps"),
    (82, "answer DEMO What? --fps inf", r"--fps must be a finite number, got inf"),
    (82, "answer DEMO What? --temperature inf", r"--temperature must be a finite number, got inf"),
    (82, "serve --clip-cache inf", r"--clip-cache must be a finite number, got inf"),
    (83, "evaluate scenes --output notes.txt", r"notes\.txt is a file: choose a folder"),
]
# A run of one step: what is tested is that it needs no --output.
BRIEFLY = "--set max_steps=1 --set batch_size=1 --set validation=0 --set num_workers=0 --set compile=false"
# These need the model code to tell. Checked in this process, which has torch anyway.
SLOW = [
    (11, "answer DEMO What? --device cuda", r"device cuda is not available: torch .*; use cpu"),
    (11, "answer DEMO What? --device mps", r"device mps is not available: torch .* finds no Apple GPU; use cpu"),
    (17, "answer DEMO What? --num-frames 100000", r"exceed the context .*at most [0-9]+ frames fit"),
    (21, "answer pic.png What?", None),
    (
        10,
        "answer DEMO What? --model wordless",
        r"wordless is not a complete .* checkpoint: it has no tokenizer",
    ),
    (10, "answer DEMO What? --model misfit", r"the weights in misfit do not have the sizes that its config"),
    (10, "answer DEMO What? --model template", r"the chat template of the model cannot be used: unexpected end"),
    (39, "finetune --data rows_many.json --model NANO --output template", r"template already contains a model, which"),
    (32, "finetune --data rows_many.json --model NANO --output o3 --set num_frames=9999", r"frames take at least"),
    (
        32,
        "finetune --data rows_many.json --model NANO --output o4 --set num_frames=128 --set max_length=8192",
        r"128 frames take at least 2,432 visual tokens, but the language model has positions for 2,048",
    ),
    (46, "lab report table4 --input pic.png", r"pic\.png was not written by this command, `videopanda lab run`"),
    (46, "lab report table4 --input empty.mp4", r"empty\.mp4 was not written by this command, `videopanda lab run`"),
    (47, "data recaption rows.json --output rows.json --model NANO", r"rows\.json: its last line was not written by"),
    (47, "data check rows.json --manifest rows.json", r"rows\.json is not a manifest of videopanda data check: line 1"),
    (
        33,
        "data features pretrain out/g --config nano --model NANO --set max_steps=1 --set teacher=photos",
        r"teacher photos: photos/config\.json cannot be read",
    ),
    (46, "lab run clip.mp4", r"clip\.mp4 is not a text in UTF-8"),
    (26, "serve --device cuda --port FREE", r"device cuda is not available: torch .*; use cpu"),
    (32, "train finetune --config nano --model NANO --output o1 --set max_step=3", r"did you mean 'max_steps'\?"),
    (
        33,
        "train finetune --config nano --model NANO --output o1 --set max_steps=abc",
        r"max_steps must be a whole number",
    ),
    (36, f"train finetune --config nano --model NANO {BRIEFLY}", None),
    (37, "train finetune --model NANO --output o1", r"no annotations at videochatgpt_tune_\.json: choose the data"),
    (38, "train finetune --config nano --model NANO --output /proc/x --set max_steps=2", r"/proc/x"),
    (45, "evaluate predict msvd-qa emptydir --output x.jsonl", r"emptydir contains none of these files"),
    (47, "evaluate predict custom rows_question.json --output y.jsonl", r"none of the videos is in .*--media-root"),
    (46, "lab report table4 --runs emptydir", r"no results at .*: run  videopanda lab run table4 --budget small"),
    (46, "lab run broken.yaml", r"broken\.yaml is not valid YAML: line [12]: "),
    (33, "data features pretrain out/g --model NANO --config pic.png", r"pic\.png is not valid JSON"),
    (33, "data features nostage out/g --model NANO", r"unknown stage 'nostage': choose one of language, prealign"),
    (33, "data features pretrain empty.mp4 --model NANO", r"empty\.mp4 is a file: choose a folder"),
    (10, "data features pretrain out/g --model nothere", r"no model folder at nothere"),
    (47, "data recaption rows.json --output emptydir --model NANO", r"--output emptydir is a folder: choose a file"),
    (45, "evaluate needle rows.json --data emptydir --output r", r"no such file or folder: emptydir/annotations\.json"),
    (50, "init --backbone nosuch/model out/f", r"nosuch/model is not in the cache, and the Hub cannot be reached"),
    (51, "init --backbone emptydir out/f", r"no language model at emptydir"),
    (51, "init --model NANO --set foo.bar=1 out/f", r"unknown setting 'foo\.bar'"),
    (52, "push plain org/name --dry-run", r"plain is a plain llama model.*videopanda init --backbone plain OUT"),
    (53, "convert NANO out/c", r"is already a videopanda checkpoint: it needs no conversion"),
    (56, "plan --backbone qwen9-8b", r"no language model 'qwen9-8b'.*qwen2\.5-7b"),
    (58, "plan --fit 24GB --backbone qwen2.5-7b --device cuda", None),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the table names."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("emptydir", "photos", "cut"):
        (folder / name).mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"x")
    (folder / "fake.mp4").write_bytes(b"this is no video" * 100)
    (folder / "empty.mp4").touch()
    Image.new("RGB", (64, 48), "white").save(folder / "pic.png")
    with wave.open(str(folder / "tone.wav"), "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(8000)
        tone.writeframes(bytes(1600))
    (folder / "notes.txt").write_text("A red circle moves.")
    (folder / "twice.json").write_text('{"max_steps": 1, "max_steps": 2}')
    (folder / "trailing.json").write_text('{"stage": "finetune", "lr": 1,}')
    rows = [{"video": "a.mp4", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    (folder / "rows.json").write_text(json.dumps(rows))
    rows[0]["conversations"][0]["value"] = "<video>\nq"
    (folder / "rows_missing.json").write_text(json.dumps(rows))
    (folder / "rows_question.json").write_text(json.dumps([{"id": "1", **rows[0]}]))
    (folder / "rows_trailing.json").write_text(json.dumps(rows)[:-1] + ",]")
    (folder / "rows_unknown.json").write_text(json.dumps([{"video_path": "a.mp4", "question": "q", "answer": "a"}]))
    for name in ("wordless", "misfit", "template"):
        shutil.copytree(NANO, folder / name)
    (folder / "wordless" / "tokenizer.json").unlink()
    (folder / "template" / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content ")
    config = json.loads((NANO / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (folder / "misfit" / "config.json").write_text(json.dumps(config))
    for name in ("clip.mp4", "-a.mp4"):
        shutil.copy(DEMO, folder / name)
    rows_many = [{**rows[0], "id": str(k), "video": "clip.mp4"} for k in range(8)]
    (folder / "rows_many.json").write_text(json.dumps(rows_many))
    (folder / "broken.yaml").write_text("rows: [{name: a}")
    (folder / "plain").mkdir()
    (folder / "plain" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "cut" / "config.json").write_text((NANO / "config.json").read_text())
    (folder / "cut" / "model.safetensors").write_bytes((NANO / "model.safetensors").read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def ports():
    with socket.create_server(("127.0.0.1", 0)) as busy, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        yield {"BUSY": str(busy.getsockname()[1]), "FREE": str(number)}


def words(command, ports):
    names = {"DEMO": str(DEMO), "NANO": str(NANO), "EMPTY": " ", "NOTHING": "", "LONG": "x" * 9000, **ports}
    return [names.get(word, word) for word in command.split()]


def check(command, line, code, out, err):
    assert "Traceback" not in err, command
    if line is None:
        assert code == 0, (command, err)
        return
    said = [one for one in err.splitlines() if not one.startswith("videopanda: using the bundled")]
    assert code == 2, (command, out, err)
    assert len(said) == 1, (command, err)
    assert said[0].startswith("videopanda: error: "), command
    assert re.search(line, said[0]), (command, said[0])
    assert out == "", command


# In one process, one after the other, and torch is not there at the end: starting Python takes the time.
RUN_ALL = """
import contextlib, io, json, sys
from videopanda.cli import app as cli
results = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["videopanda", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = repr(error)
    results.append((code, out.getvalue(), err.getvalue(), "torch" in sys.modules))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def quick(place, ports):
    """What every quick mistake said."""
    asked = json.dumps([words(command, ports) for _, command, _ in QUICK])
    done = subprocess.run([sys.executable, "-c", RUN_ALL], input=asked, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("row", range(len(QUICK)), ids=lambda row: f"{QUICK[row][0]}-{QUICK[row][1]}")
def test_a_mistake_ends_before_torch_is_imported(quick, row):
    _, command, line = QUICK[row]
    code, out, err, is_loaded = quick[row]
    check(command, line, code, out, err)
    assert not is_loaded, command


@pytest.mark.parametrize(("number", "command", "line"), SLOW, ids=lambda value: str(value)[:60])
def test_a_mistake_is_one_line(place, ports, monkeypatch, number, command, line):
    from command import run

    monkeypatch.chdir(place)
    check(command, line, *run(*words(command, ports)))


@pytest.mark.parametrize("command", ["", "scenes"])
def test_a_command_alone_prints_its_help_and_no_error(command):
    from command import run

    code, out, err = run(*command.split())
    assert (code, err) == (2, "")
    assert "Usage: videopanda" in out


def test_several_questions_of_one_word_are_questions():
    from videopanda.cli import checks

    checks.require_video(DEMO, questions=["What?", "Who?"])
    checks.require_video(DEMO, questions=["什么颜色", "几个"])  # languages without spaces


def test_a_missing_extra_is_named(monkeypatch, place):
    from command import run
    from videopanda.cli import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "uvicorn" else name)
    code, _, err = run("serve")
    assert code == 2
    assert err.splitlines()[-1] == "videopanda: error: this needs uvicorn: pip install 'videopanda[serve]'"


def test_the_command_knows_the_types_of_the_library():
    from videopanda.cli import options
    from videopanda.inference import load

    choices, _ = get_args(options.Dtype.__origin__)
    assert get_args(choices) == load.DTYPES


def test_checks_know_the_stages_and_presets_of_training():
    from videopanda.cli import checks
    from videopanda.training.stages import PRESETS

    assert set(checks.PRESETS) == set(PRESETS)
    assert set(checks.STAGES) == {stage for table in PRESETS.values() for stage in table}
