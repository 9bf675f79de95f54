"""Protects the tables: every row of every shipped table can be built and trained, and a wrong one is told."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import TABLE, write_language_model, write_table
from transformers import CLIPVisionConfig, Dinov2Config

from command import run as command
from videopanda.lab.check import check
from videopanda.lab.run import LabCommand, _cell, _content, cells
from videopanda.lab.table import names, only, read
from videopanda.models.families import fresh_config, model_class, processor_class
from videopanda.training import stages
from videopanda.training.dry_run import plan
from videopanda.training.freezing import set_stage, vision_modules
from videopanda.training.stages import make_config

TABLES = (
    "compressors",
    "elva",
    "peers",
    "recipe",
    "scaling",
    "table10",
    "table4",
    "table5",
    "table7",
    "table8",
    "table9",
)
TEXT = {"model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}


def test_the_tables_of_the_papers_are_there():
    assert tuple(names()) == TABLES


@pytest.mark.parametrize("name", TABLES)
def test_every_row_builds_a_model_and_freezes_what_its_stages_say(name):
    table = read(name)
    assert table.compare in {row.name for row in table.rows}
    for row in table.rows:
        for budget in table.budgets:
            chain = table.chain(row.name, 1, budget)
            stages = [make_config(training.stage, training.config, training.options) for training in chain]
            assert all(stage.max_steps for stage in stages)
            maker = next(stage for stage in stages if stage.stage != "language")
            assert all(not stage.model_fields for stage in stages if stage is not maker and stage.stage != "language")
        fields = {key: value for key, value in maker.model_fields.items() if not key.startswith("text.")}
        config = fresh_config(
            maker.model_family, maker.model_preset, fields, text_config=TEXT, video_token_id=1, image_token_id=2
        )
        with torch.device("meta"):
            model = model_class(config)(config)
        for stage in stages:
            if stage.stage != "language":
                set_stage(model, stage.learning_rates(vision_modules(model)))
        seen = processor_class(config).video_processor_for(config)
        assert 0 < seen.token_count(stages[-1].num_frames, 144, 192) < stages[-1].max_length
    check(table, "full")


def test_a_frozen_encoder_is_trained_first_and_named_as_a_folder(tmp_path):
    found = {cell.row: cell.units for cell in cells(read("peers"), "small", tmp_path, 1)}
    kinds = [unit.kind for unit in found["frozen video encoder"]]
    assert kinds == ["language", "teacher", "prealign", "pretrain", "evaluate"]
    teacher, prealign, pretrain = found["frozen video encoder"][1:4]
    assert f"encoder={teacher.folder}" in prealign.arguments
    assert not any(word.startswith("encoder=") for word in pretrain.arguments)
    assert found["video encoder, trained along"][2] == prealign  # shared
    assert found["frozen image encoder"][1] != teacher


def test_a_run_is_of_what_the_preset_and_the_data_are_now(tmp_path, monkeypatch):
    """A finished run is taken for a row only if all that decides it is the same, not only what the table says of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("[]")
    text = TABLE.replace("num_workers: 0,", "num_workers: 0, data: mine.json, max_bad_share: 0.5,")
    table = read(write_table(tmp_path, text))

    def pretrain() -> str:
        return _cell(table, "full", 0, "small", tmp_path / "runs", None).units[0].folder.name

    before = pretrain()
    monkeypatch.setitem(stages.NANO, "pretrain", replace(stages.NANO["pretrain"], log_steps=7, max_steps=9))
    assert pretrain() == before  # neither decides anything here
    monkeypatch.setitem(stages.NANO, "pretrain", replace(stages.NANO["pretrain"], max_grad_norm=0.5))
    changed = pretrain()
    assert changed != before
    (tmp_path / "mine.json").write_text("[{}]")
    _content.cache_clear()
    assert pretrain() not in (before, changed)


def test_commands_can_be_pasted_and_have_no_local_paths(tmp_path):
    arguments = ("train", "pretrain", "--model", str(tmp_path / "a-1"), "--set", "data=/clips/my clips.json", "--set")
    unit = LabCommand("pretrain", tmp_path / "pretrain-1", (*arguments, "w=[1, 2]"), 1, "config.json")
    assert unit.command == "videopanda train pretrain --model a-1 --set 'data=my clips.json' --set 'w=[1, 2]'"


def test_no_two_rows_of_a_table_are_the_same_experiment():
    for name in names():
        table = read(name)
        chains = [str([vars(training) for training in table.chain(row.name, 0, "full")]) for row in table.rows]
        assert len(set(chains)) == len(chains), name


@pytest.mark.parametrize("name", ["table4", "scaling"])
def test_the_first_stages_of_rows_pass_the_dry_run(tmp_path, name):
    language = write_language_model(tmp_path / "language")
    for row in read(name).rows[:4]:
        (training,) = [t for t in read(name).chain(row.name, 0, "small") if t.stage == "prealign"]
        lines = plan(training.stage, training.config, training.options, language, 1)
        assert any("FROZEN" in line for line in lines)
        assert any("TRAINABLE" in line for line in lines)


def test_shared_stages_are_one_run(tmp_path):
    planned = cells(read("table4"), "full", tmp_path, seeds=2)
    assert [cell.name for cell in planned[:2]] == ["full, seed 0", "no row token, seed 0"]
    assert planned[6].seed == 1
    folders = {kind: {unit.folder for cell in planned for unit in cell.units if unit.kind == kind} for kind in
               ("language", "prealign", "pretrain", "evaluate")}  # fmt: skip
    assert {kind: len(found) for kind, found in folders.items()} == {
        "language": 1, "prealign": 12, "pretrain": 12, "evaluate": 12
    }  # fmt: skip
    halves = cells(read("elva"), "full", tmp_path, seeds=1)
    of = {cell.row: cell.units for cell in halves}
    assert of["VPEL, no merging"][1] == of["half of the second visual stage"][1]
    assert of["VPEL, no merging"][1] != of["half of the first visual stage"][1]


def test_the_commands_of_a_cell_are_those_of_this_version(tmp_path):
    (cell,) = cells(read("table10"), "small", tmp_path, 1)[:1]
    for unit in cell.units:
        code, _, err = command(*unit.arguments, "--help")  # all options are parsed before help is printed
        assert code == 0, err


def test_seeds_change_training_but_not_the_questions(tmp_path):
    first, second = cells(read("table8"), "full", tmp_path, seeds=2)[::2]
    assert "seed=144" in first.units[1].arguments + second.units[1].arguments
    assert first.units[-1].arguments[4:10] == second.units[-1].arguments[4:10]


def test_another_language_model_is_another_run(tmp_path):
    language = write_language_model(tmp_path / "language")
    (cell,) = cells(read("table8"), "small", tmp_path / "runs", 1, language)[:1]
    (fresh,) = cells(read("table8"), "small", tmp_path / "runs", 1)[:1]
    assert [unit.kind for unit in cell.units] == ["prealign", "pretrain", "evaluate"]
    assert cell.units[0].folder != fresh.units[1].folder
    assert str(tmp_path) not in cell.units[0].command


def test_a_teacher_is_trained_before_the_stage_that_needs_it(tmp_path):
    (cell,) = cells(read("table10"), "small", tmp_path, 1)[:1]
    kinds = [unit.kind for unit in cell.units]
    assert kinds == ["language", "teacher", "prealign", "pretrain", "evaluate"]
    assert all(f"teacher={cell.units[1].folder}" in cell.units[i].arguments for i in (2, 3))
    *_, without = cells(read("table5"), "small", tmp_path, 1)
    assert [unit.kind for unit in without.units] == ["language", "prealign", "pretrain", "evaluate"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("stab.row_tokens: false", "stab.row_token: false"), "did you mean 'stab.row_tokens'"),
        (("stab.row_tokens: false", "stab.row_tokens: maybe"), "stab.row_tokens must be true or false"),
        (("batch_size: 1", "batch_sizes: 1"), "did you mean 'batch_size'"),
        (("compare: full", "compare: all"), "no row 'all'"),
        (("compare: full", "compares: full"), "unknown key 'compares'"),
        (("no row token,", "full,"), "two rows have the same name"),
        (("stages: [pretrain]", "stages: [train]"), "no stage 'train'"),
        (("questions: 12", "questions: 11"), "questions at least 12"),
        (("seeds: 1,", "seeds: 1.5,"), "seeds must be a whole number, got 1.5"),
        (("{name: full,", "{name: 16,"), "name must be text (in quotation marks), got 16"),
        (("fields: {stab.row_tokens: false}", "fields: [stab.row_tokens]"), "fields must be a mapping, got ["),
        (("fields: {stab.row_tokens: false}", "without: pretrain"), "without must be a list, got 'pretrain'"),
        (("published: {Bench: 50}", "published: {Bench: low}"), "published must be a mapping whose values are each a"),
        (("published: {Bench: 50}", "steps: {pretrain: 0}"), "steps must be positive factors"),
        (("published: {Bench: 50}", "steps: {prealign: 0.5}"), "no stage 'prealign', choose from pretrain"),
        (
            ("published: {Bench: 50}", "steps: {pretrain: 2}, without: [pretrain]"),
            "stage pretrain, which it leaves out",
        ),
        (("compare: full", "compare: full\ncolumns: [shapes]"), "columns: no family 'shapes', choose from colour"),
        (("stab.row_tokens: false", "text.hidden_size: 64"), "text.hidden_size has no effect without stage language"),
        (("title: Two rows", "title: Two rows\nbase: micro.yaml"), "base refers to the table itself"),
        (("seeds: 1, ", ""), "missing 1 required positional argument: 'seeds'"),
        (("rows:", "rows: 3\nothers:"), "rows must be a list"),
        (("rows:", "rows"), "not valid YAML"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(tmp_path, monkeypatch, change, message):
    text = TABLE.replace(*change)
    assert text != TABLE
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, text)
    code, _, err = command("lab", "run", "micro.yaml", "--dry-run")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fields: {stab.row_tokens: true}", "rows 'full' and 'x' are the same experiment"),
        ("fields: {text.hidden_sizes: 64}", "row 'x': unknown setting 'text.hidden_sizes': did you mean"),
        ("fields: {compression.kind: pool, compression.pool_time: 2}", "the tokens of this model are compressed"),
        ("stages: {pretrain: {num_frames: 32}}", "32 frames take at least 800 visual tokens"),
        ("stages: {pretrain: {lr.projectr: 1}}", "did you mean 'lr.projector'"),
        ("stages: {pretrain: {stab.row_tokens: false}}", "stab.row_tokens belongs under `fields`"),
        ("stages: {pretrain: {teacher: none}}", "the teacher has no effect: set distill_weight"),
        ("stages: {pretrain: {align_weight: 0, distill_weight: 1}}", "choose one with --set teacher=DIR"),
        ("stages: {pretrain: {align_weight: 0, distill_weight: 1, teacher: none}}", "teacher none: none/config.json"),
        (
            "stages: {prealign: {encoder: small, whiten_patches: false}}",
            "family videopanda takes no pretrained encoder",
        ),
        ("fields: {stab.fsra: false}}\nteachers: {t: {kind: image, step: 3}", "teacher t: unknown key 'step'"),
        ("fields: {stab.fsra: false}}\nteachers: {t: {kind: images}", "kind must be one of video-text"),
        ("fields: {stab.fsra: false}}\nteachers: {t: {kind: image, clips: 1}", "clips must be a whole number of at"),
    ],
)
def test_a_row_that_a_stage_would_refuse_is_told_before_anything_runs(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: table4\ntitle: Mine\nrows:\n  - {{name: full}}\n  - {{name: x, {change}}}\n")
    code, _, err = command("lab", "run", path, "--dry-run")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_plain_embedding_cannot_start_from_whitened_patches(tmp_path):
    path = tmp_path / "mine.yaml"
    rows = "  - {name: VPEL}\n  - {name: x, fields: {embedding.kind: linear}}\n"
    path.write_text(f"base: elva\ntitle: Mine\ncompare: VPEL\nrows:\n{rows}")
    with pytest.raises(ValueError, match="row 'x': stage prealign: this model has no patch embedding"):
        check(read(path), "small")


def test_rows_that_change_the_language_model_do_not_start_from_one(tmp_path):
    language, table = write_language_model(tmp_path / "language"), read("scaling")
    with pytest.raises(ValueError, match=r"half as wide': text.hidden_size has no effect with --model"):
        cells(table, "small", tmp_path / "runs", 1, language)
    assert cells(only(table, ["full", "STAB half as wide"]), "small", tmp_path / "runs", 1, language)


def test_teachers_of_one_name_in_two_folders_are_two_experiments(tmp_path):
    rows = ["  - {name: video and text}"]
    for place, side in (("a", 20), ("b", 10)):
        folder = tmp_path / place / "teacher"
        CLIPVisionConfig(hidden_size=32, num_attention_heads=4, image_size=100, patch_size=side).save_pretrained(folder)
        rows.append(
            f"  - {{name: {place}, stages: {{prealign: {{teacher: {folder}}}, pretrain: {{teacher: {folder}}}}}}}"
        )
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(["base: table10", "title: Mine", "rows:", *rows]) + "\n")
    _, one, other = cells(read(path), "small", tmp_path / "runs", 1)
    assert one.units[0] == other.units[0]  # the language model
    assert one.units[1].folder != other.units[1].folder
    moved = tmp_path / "c" / "teacher"
    moved.parent.mkdir()
    shutil.copytree(tmp_path / "a" / "teacher", moved)
    path.write_text(path.read_text().replace(str(tmp_path / "a"), str(tmp_path / "c")))
    assert cells(read(path), "small", tmp_path / "runs", 1)[1].units[1].folder == one.units[1].folder


def test_wrong_names_are_told():
    assert "neither a file nor one of compressors" in command("lab", "run", "table44")[2]
    assert "no budget 'huge': choose from small, full" in command("lab", "run", "table4", "--budget", "huge")[2]
    assert "no row 'none'" in command("lab", "run", "table4", "--row", "none")[2]


def test_a_table_of_ones_own_needs_few_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: table4\ntitle: Mine\nrows:\n  - {name: full}\n"
        "  - {name: narrow LSTE, fields: {stab.lste_bottleneck: 64}}\n"
    )
    table = read(path)
    assert table.chain("narrow LSTE", 0, "full")[1].settings["stab.lste_bottleneck"] == "64"
    assert table.budgets["full"].seeds == 3
    assert table.source == ""  # it is not the paper's table
    code, out, _ = command("lab", "run", path, "--dry-run")
    assert code == 0
    assert out.count("videopanda train language") == 1
    assert out.count("videopanda train pretrain") == 2


def test_the_tables_of_the_page_are_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Dinov2Config(hidden_size=64, num_attention_heads=4, image_size=70, patch_size=14).save_pretrained("out/dinov2-s")
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    examples = [block.partition("```")[0] for block in text.split("```yaml\n")[1:]]
    assert len(examples) == 3
    for example in examples:
        (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
        assert cells(read(tmp_path / "mine.yaml"), "full", tmp_path, 1)


def test_the_list_names_every_table():
    code, out, _ = command("lab", "list")
    assert code == 0
    assert all(name in out for name in TABLES)
