"""Protects the page, in a real browser: upload, frames, streamed answers, stop, errors, keyboard, phone, dark."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from test_api import ASKED, DEMO

from videopanda.data.worlds.scenes.make import ensure_clip

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'videopanda[dev]'")
pytestmark = pytest.mark.timeout(600)  # a server has to start
PATIENCE = 120_000  # milliseconds


class Page:
    """A page of the server, and what goes wrong in it."""

    def __init__(self, browser, server, **options):
        self.context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.errors, self.elsewhere = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda r: self.elsewhere.append(r.url) if not self.is_own(r.url, server) else None)
        self.page.goto(server.url)
        sync_api.expect(self.page.locator("#model")).to_have_text("nano", timeout=PATIENCE)

    @staticmethod
    def is_own(url, server):
        return url.startswith((server.url, "data:", "blob:"))

    def answers(self):
        return self.page.locator("#log .assistant")

    def wait_for_answer(self, number):
        """The text of an answer, when it is complete."""
        answer = self.answers().nth(number)
        sync_api.expect(answer.locator(".note")).to_have_count(1, timeout=PATIENCE)
        return answer.locator(".text").inner_text()

    def upload(self, path):
        self.page.set_input_files("#file", path)


@pytest.fixture
def page(browser, server):
    page = Page(browser, server, viewport={"width": 1280, "height": 860})
    yield page
    assert page.errors == []
    assert page.elsewhere == []
    page.context.close()


@pytest.fixture(scope="module")
def wanted():
    from videopanda.inference.answer import Chat
    from videopanda.inference.load import load

    chat = Chat(*load(None, device="cpu"), DEMO)
    return [chat.ask(question).answer for question in ASKED[:2]]


def test_upload_ask_and_ask_again(page, tmp_path):
    """The second question starts behind the clip: the server says how many tokens it knew already."""
    from videopanda.inference.answer import Chat
    from videopanda.inference.load import load

    clip = ensure_clip(tmp_path, 3, "test", 1)  # one that no other test has shown to the server
    chat = Chat(*load(None, device="cpu"), clip)
    wanted = [chat.ask(question).answer for question in ASKED[:2]]
    page.upload(clip)
    frames = page.page.locator("#frames button")
    sync_api.expect(frames).to_have_count(8, timeout=PATIENCE)
    assert [f.inner_text().strip().endswith(" s") for f in frames.all()] == [True] * 8
    pieces = page.page.evaluate_handle(
        """() => {
            const seen = [], note = () => seen.push(document.querySelector("#log .assistant .text")?.textContent ?? "");
            new MutationObserver(note).observe(document.getElementById("log"), { subtree: true, childList: true });
            return seen;
        }"""
    )
    page.page.fill("#question", ASKED[0])
    page.page.keyboard.press("Enter")
    assert page.wait_for_answer(0) == wanted[0]
    seen = [text for text in dict.fromkeys(pieces.json_value()) if text]
    assert seen[-1] == wanted[0]
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    page.page.fill("#question", ASKED[1])
    page.page.click("#send")
    assert page.wait_for_answer(1) == wanted[1]
    assert page.answers().nth(0).get_attribute("data-known") == "0"
    assert int(page.answers().nth(1).get_attribute("data-known")) > 100
    frames.nth(7).click()
    page.page.wait_for_function("document.getElementById('player').currentTime > 0")


def test_the_example_brings_its_questions(page, wanted):
    page.page.click("#example")
    ideas = page.page.locator("#ideas button")
    sync_api.expect(ideas).to_have_count(len(ASKED), timeout=PATIENCE)
    ideas.nth(0).click()
    assert page.wait_for_answer(0) == wanted[0]


def test_an_answer_comes_in_pieces_and_can_be_stopped(page):
    """The request is slowed down to a stream of many pieces by asking for a long, random answer."""

    def longer(route):
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps({**body, "temperature": 2.0, "seed": 3, "max_tokens": 1000}))

    page.page.route("**/v1/chat/completions", longer)
    page.page.fill("#question", "Tell me a long story.")
    page.page.keyboard.press("Enter")
    text = page.answers().nth(0).locator(".text")
    sync_api.expect(text).not_to_be_empty(timeout=PATIENCE)
    page.page.keyboard.press("Escape")
    page.wait_for_answer(0)
    assert page.answers().nth(0).locator(".note").inner_text() == "stopped"
    length = len(text.inner_text())
    page.page.wait_for_timeout(300)
    assert len(text.inner_text()) == length > 0
    sync_api.expect(page.page.locator("#send")).to_be_enabled()


def test_a_broken_file_is_told(page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(DEMO.read_bytes()[:500])
    for path, words in ((broken, "cannot read this video"), (Path(__file__), "not a supported video or image")):
        page.upload(path)
        problem = page.page.locator("#problem")
        sync_api.expect(problem).to_contain_text(words, timeout=PATIENCE)
    page.upload(DEMO)
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    sync_api.expect(problem).to_be_hidden()


def test_code_to_copy_gives_the_same_answer(page, wanted):
    """What is copied is run, against the same server."""
    page.upload(DEMO)
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    page.page.fill("#question", ASKED[0])
    page.page.click("text=Copy as curl")
    if shutil.which("curl"):
        command = page.page.locator("#code-text").inner_text()
        done = subprocess.run(["bash", "-c", command], cwd=DEMO.parent, capture_output=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == wanted[0]
    page.page.click("dialog >> text=Close")
    page.page.click("text=Copy as Python")
    sync_api.expect(page.page.locator("#copied")).to_have_text("Copied.")
    code = page.page.evaluate("navigator.clipboard.readText()").replace('"demo.mp4"', repr(str(DEMO)))
    said = []
    exec(compile(code, "copied", "exec"), {"print": said.append})
    assert said == [wanted[0]]


def test_it_works_by_keyboard_on_a_phone_in_the_dark(browser, server, wanted):
    """Everything is reached by Tab and has a name; nothing is wider than the screen; the dark page is dark."""
    page = Page(browser, server, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.upload(DEMO)
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(", "))) < 150
    page.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate("document.activeElement.id"))
    assert {"theme", "file", "example", "player", "question", "send"} <= reached
    names = page.page.eval_on_selector_all(
        "button, input, textarea, video, img",
        """all => all.filter(e => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()
            || e.hasAttribute("alt"))).map(e => e.outerHTML)""",
    )
    assert names == []
    page.page.focus("#question")
    page.page.keyboard.type(ASKED[0])
    page.page.keyboard.press("Enter")
    assert page.wait_for_answer(0) == wanted[0]
    page.page.click("#theme")
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(", "))) > 600
    assert page.errors == []
    page.context.close()
