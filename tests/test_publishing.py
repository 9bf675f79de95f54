"""Protects what is published around the code: package page, citation, issue forms, and the pages of the site."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
import yaml

import videopanda
from test_readme import DEMO, TEXT, blocks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
package_page = runpy.run_path(str(ROOT / "hatch_build.py"))["package_page"]


# -- the package page --------------------------------------------------------------------------------------------------
def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s#]+)", text)


def test_a_package_page_has_no_relative_links():
    address = "https://example.org/us/videopanda"
    relative = [target for target in targets(TEXT) if "://" not in target]
    assert {"docs/images/demo.png", "docs/elva.md", "LICENSE"} <= {*relative}
    page = package_page(TEXT, address)
    assert all("://" in target for target in targets(page))
    assert f"]({address}/raw/main/docs/images/demo.png)" in page
    assert f"[ELVA]({address}/blob/main/docs/elva.md)" in page
    assert page.count("![") == TEXT.count("![")


def test_without_an_address_its_links_are_plain_text():
    page = package_page(TEXT, None)
    assert all("://" in target for target in targets(page))
    assert "![" not in page
    assert "**ELVA** (ICCV 2025)" in page


# -- citation and issues -----------------------------------------------------------------------------------------------
def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == videopanda.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the schema requires
    assert [work["year"] for work in citation["references"]] == [2025, 2025]


def test_a_bug_report_asks_for_doctor():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    (doctor,) = [part for part in form["body"] if part.get("id") == "doctor"]
    assert "videopanda doctor" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]


# -- the site ----------------------------------------------------------------------------------------------------------
def test_every_page_is_in_the_navigation():
    """`make docs` finds broken links and names that no longer exist; it needs packages of its own."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r": ([\w/]+\.md)$", nav, flags=re.MULTILINE))
    written = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    assert named - written == {"index.md", "contributing.md", "changes.md"}  # made by hooks.py
    assert written <= named


def test_all_tutorials_are_tested():
    assert {file.stem for file in TUTORIALS} == {"camera", "evaluation", "one_page", "own_clips", "paper"}


@pytest.mark.parametrize("name", ["camera", "own_clips"])
def test_the_python_of_a_tutorial_runs(name, tmp_path, monkeypatch):
    text = (DOCS / "tutorials" / f"{name}.md").read_text("utf-8")
    shutil.copy(DEMO, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text("\n".join(blocks(text, "python")), encoding="utf-8")
    runpy.run_path("block.py", run_name="__main__")
