"""Protects the page, in a real browser: whose answer is shown where, what is kept, the timeline, errors, keyboard,
phone, dark. The check with axe runs if it is there: npm ci --prefix tests/serving/js
"""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from browser_page import PATIENCE, Page, sync_api
from test_api import ASKED, DEMO

from videopanda.data.worlds.scenes.make import ensure_clip

pytestmark = pytest.mark.timeout(600)  # a server has to start
AXE = Path(__file__).parent / "js/node_modules/axe-core/axe.min.js"


def test_upload_ask_and_ask_again(page, nano, tmp_path):
    """The second question starts behind the clip: the server says how many tokens it knew already."""
    from videopanda.inference.answer import Chat

    clip = ensure_clip(tmp_path, 3, "test", 1)  # one that no other test has shown to the server
    chat = Chat(*nano, clip)
    wanted = [chat.ask(question).answer for question in ASKED[:2]]
    page.upload(clip)
    frames = page.page.locator("#frames button")
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
    """The request becomes a stream of many pieces: the model repeats what it does not know until its limit."""

    messages = [{"role": "user", "content": "a b c d e f g " * 40}]
    story = {"messages": messages, "temperature": 0.0, "max_tokens": 1000}

    def longer(route):
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps({**body, **story}))

    page.upload(DEMO)
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
        page.upload(path, frames=0)
        problem = page.page.locator("#problem")
        sync_api.expect(problem).to_contain_text(words, timeout=PATIENCE)
    page.upload(DEMO)
    sync_api.expect(problem).to_be_hidden()


def test_an_answer_belongs_to_the_clip_it_was_asked_about(page, wanted, tmp_path):
    """Another clip is chosen while an answer is on its way, and the page goes back and forth between the two."""
    bodies, held = page.requests(), []
    page.upload(DEMO)
    page.page.route("**/v1/chat/completions", lambda route: held.append(route), times=1)
    page.page.fill("#question", ASKED[0])
    page.page.keyboard.press("Enter")
    sync_api.expect(page.page.locator("#stop")).to_be_enabled()
    page.page.wait_for_function("document.querySelector('#log .assistant')")
    page.page.wait_for_timeout(200)
    page.upload(ensure_clip(tmp_path, 3, "test", 2))
    sync_api.expect(page.page.locator("#player")).to_be_visible()
    held.pop().continue_()
    sync_api.expect(page.page.locator("#conversations .name")).to_have_count(2)
    sync_api.expect(page.page.locator("#conversations")).not_to_contain_text("answering", timeout=PATIENCE)
    assert page.answers().count() == 0
    page.ask("What shape is it?", 0)
    page.page.locator("#conversations .name", has_text=ASKED[0]).click()
    assert page.wait_for_answer(0) == wanted[0]
    assert page.ask(ASKED[1], 1) == wanted[1]
    first, other, again = bodies
    shown = [[part["file"]["file_id"] for part in body["messages"][0]["content"][:1]] for body in bodies]
    assert shown[0] == shown[2] != shown[1]
    assert [len(body["messages"]) for body in bodies] == [1, 1, 3]
    assert again["messages"][:2] == [first["messages"][0], {"role": "assistant", "content": wanted[0]}]
    assert other["messages"][0]["content"][1]["text"] == "What shape is it?"


def test_nothing_is_asked_or_copied_without_a_video(page):
    bodies = page.requests()
    problem = page.page.locator("#problem")
    page.page.fill("#question", ASKED[0])
    page.page.keyboard.press("Enter")
    sync_api.expect(problem).to_have_text("Choose a video first.")
    page.upload(DEMO)
    page.page.fill("#question", "")
    page.page.click("text=Copy as curl")
    sync_api.expect(problem).to_contain_text("Type a question first")
    assert bodies == []


def test_a_reload_loses_nothing(page, server, wanted):
    """Not even the clip, when the server has lost it: the browser uploads it again."""
    bodies = page.requests()
    page.upload(DEMO)
    assert page.ask(ASKED[0], 0) == wanted[0]
    page.page.click("#theme")
    page.page.evaluate("localStorage.setItem('videopanda.setting.key', JSON.stringify('a-key'))")
    lost = bodies[0]["messages"][0]["content"][0]["file"]["file_id"]
    assert page.page.evaluate(f"fetch('/v1/files/{lost}', {{ method: 'DELETE' }}).then((r) => r.status)") == 200
    with page.page.expect_request("**/v1/models") as asked:
        page.page.reload()
    assert asked.value.headers["authorization"] == "Bearer a-key"
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    page.page.wait_for_function("document.getElementById('player').duration > 3")
    assert page.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.wait_for_answer(0) == wanted[0]
    assert page.ask(ASKED[1], 1) == wanted[1]
    assert bodies[1]["messages"][0]["content"][0]["file"]["file_id"] != lost


def test_a_deleted_conversation_comes_back_by_undo_and_else_is_gone(page, wanted):
    page.upload(DEMO)
    page.ask(ASKED[0], 0)
    kept = """async () => {
        const opened = indexedDB.open("videopanda", 1);
        await new Promise((done) => { opened.onsuccess = done; });
        const clips = opened.result.transaction("clips").objectStore("clips").getAllKeys();
        await new Promise((done) => { clips.onsuccess = done; });
        return [Object.keys(localStorage).filter((key) => key.includes("conversation.")).length, clips.result.length];
    }"""
    remove, undo = page.page.locator("#conversations .remove"), page.page.locator("#undo")
    remove.click()
    sync_api.expect(page.page.locator("#deleted")).to_have_text(f"Deleted: {ASKED[0]}")
    sync_api.expect(undo).to_be_focused()
    assert page.answers().count() == 0
    page.page.wait_for_function(f"({kept})().then((counts) => counts.join() === '0,0')")
    page.page.keyboard.press("Enter")
    assert page.wait_for_answer(0) == wanted[0]
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    sync_api.expect(undo).to_be_hidden()
    page.page.wait_for_function(f"({kept})().then((counts) => counts.join() === '1,1')")
    remove.click()
    page.page.reload()
    sync_api.expect(page.page.locator("#conversations .name")).to_have_text("New conversation")
    sync_api.expect(undo).to_be_hidden()


def test_edit_another_answer_and_export(page, wanted):
    bodies = page.requests()
    page.upload(DEMO)
    page.ask(ASKED[1], 0)
    page.ask("What else?", 1)
    page.page.locator(".edit").first.click()
    page.page.keyboard.press("Escape")
    assert page.page.input_value("#question") == ""
    page.page.locator(".edit").first.click()
    assert page.page.input_value("#question") == ASKED[1]
    assert page.ask(ASKED[0], 0) == wanted[0]
    assert page.answers().count() == 1
    assert len(bodies[-1]["messages"]) == 1
    page.page.click(".again")
    sync_api.expect(page.answers().first.locator(".note")).to_contain_text("sampled", timeout=PATIENCE)
    assert bodies[-1]["temperature"] > 0
    with page.page.expect_download() as download:
        page.page.click("#export")
    kept = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert kept["clip"]["name"] == "demo.mp4"
    (turn,) = kept["turns"]
    assert turn["question"] == ASKED[0]
    assert turn["answer"] == page.answers().first.locator(".text").inner_text()
    assert turn["sampling"] == {name: bodies[-1][name] for name in ("temperature", "seed")}


def test_the_timeline_chooses_frames_and_tells_their_cost(page):
    bodies = page.requests()
    page.upload(DEMO)
    cost, frames = page.page.locator("#cost"), page.page.locator("#frames button")
    sync_api.expect(cost).to_contain_text("8: ")
    page.page.locator("#count").fill("5")
    sync_api.expect(frames).to_have_count(5, timeout=PATIENCE)
    page.page.locator("#start").focus()
    for _ in range(10):
        page.page.keyboard.press("ArrowRight")
    start = float(page.page.locator("#start").input_value())
    assert 0 < start < 3
    sync_api.expect(frames.first).not_to_contain_text("0.3", timeout=PATIENCE)
    page.page.wait_for_timeout(1000)
    sync_api.expect(cost).to_contain_text("5: ", timeout=PATIENCE)
    page.ask(ASKED[3], 0)
    part = bodies[0]["messages"][0]["content"][0]
    assert part["num_frames"] == 5
    assert part["start"] == pytest.approx(start, abs=0.01)
    assert "end" not in part
    tokens = cost.inner_text().split()[1]
    note = page.answers().first.locator(".note").inner_text()
    assert note.startswith(f"{tokens} visual tokens")
    assert "5 frames from" in note
    sync_api.expect(page.page.locator("#ticks .looked")).to_have_count(5)
    sync_api.expect(cost).to_contain_text("s to read")


def test_times_are_links_and_markup_is_text(page):
    page.upload(DEMO)
    rendered = page.page.evaluate(
        """async () => {
            const { render } = await import("/static/markdown.js");
            const box = document.createElement("div");
            const text = ["# A *title*", "**bold** `a<b>` <img src=x onerror=alert(1)> at 1.5 s", "", "- one",
                "- two", "", "```", "<script>", "```", "3. three", ""].join("\\n");
            const link = (word, time) => Object.assign(document.createElement("button"), { textContent: time });
            box.append(render(text, link), render("2 min 5 s, 0:01:02.5, 1h2m3s", link));
            return box.innerHTML;
        }"""
    )
    assert rendered == (
        "<p><strong>A <em>title</em></strong></p><p><strong>bold</strong> <code>a&lt;b&gt;</code> "
        "&lt;img src=x onerror=alert(1)&gt; at <button>1.5</button></p><ul><li>one</li><li>two</li></ul>"
        '<pre><code>&lt;script&gt;</code></pre><ol start="3"><li>three</li></ol>'
        "<p><button>125</button>, <button>62.5</button>, <button>3723</button></p>"
    )
    page.ask(ASKED[3], 0)
    page.answers().first.locator(".time").click()
    page.page.wait_for_function("document.getElementById('player').currentTime === 1")


def test_code_to_copy_gives_the_same_answer(page, wanted):
    """What is copied is run, against the same server."""
    page.upload(DEMO)
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


def test_the_camera_is_asked_about_and_the_session_ends_with_it(page):
    with page.page.expect_response(lambda r: r.url.endswith("/v1/streaming/sessions") and r.ok) as opened:
        page.page.click("#live-start")
    session = f"/v1/streaming/sessions/{opened.value.json()['id']}"
    sync_api.expect(page.page.locator("#live-status")).to_contain_text("Sent: 3", timeout=PATIENCE)
    page.page.fill("#live-question", ASKED[0])
    page.page.keyboard.press("Enter")
    sync_api.expect(page.page.locator("#live-log .assistant")).to_contain_text("visual tokens)", timeout=PATIENCE)
    with page.page.expect_response(f"**{session}") as closed:
        page.page.click("#live-close")
    assert closed.value.json()["deleted"]
    assert not page.page.evaluate("document.getElementById('camera').srcObject")


def test_it_works_by_keyboard_on_a_phone_in_the_dark(browser, server, wanted):
    """Everything is reached by Tab and has a name; nothing is wider than the screen; the dark page is dark."""
    page = Page(browser, server, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.upload(DEMO)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(", "))) < 150
    page.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate("document.activeElement.id"))
    assert {"theme", "file", "example", "player", "start", "end", "count", "happens", "question", "send"} <= reached
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
    page.page.click("#about")
    sync_api.expect(page.page.locator("#facts-list")).to_contain_text("at most 32")
    page.page.keyboard.press("Escape")
    page.page.click("#theme")
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(", "))) > 600
    assert page.errors == []
    page.context.close()


@pytest.mark.skipif(not AXE.exists(), reason="no axe: npm ci --prefix tests/serving/js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, server, scheme):
    page = Page(browser, server, viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    page.page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.page.evaluate("axe.run()")["violations"]
    page.upload(DEMO)
    page.page.check("#truth")
    page.ask(ASKED[3], 0)
    sync_api.expect(page.page.locator(".verdict")).to_contain_text("ideo", timeout=PATIENCE)
    page.page.click(".ask-why")
    sync_api.expect(page.page.locator(".why")).to_be_visible(timeout=PATIENCE)
    page.page.fill("#happens", "the circle turns white")
    page.page.keyboard.press("Enter")
    sync_api.expect(page.page.locator("#moments .time")).to_be_visible(timeout=PATIENCE)
    found += page.page.evaluate("axe.run()")["violations"]
    assert [(one["id"], one["impact"], [node["target"] for node in one["nodes"]]) for one in found] == []
    page.context.close()
