"""Protects the page, in a real browser: whose answer is shown where, what is kept, the timeline, moments, the truth
switch, errors, keyboard, phone, dark. The check with axe runs if it is there: npm install --no-save axe-core@4.14.1
"""

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_api import ASKED, DEMO

from videopanda.data.worlds.scenes.make import ensure_clip
from videopanda.evaluation.conditions import rearrange
from videopanda.video.order import one_frame_order, shuffled_order
from videopanda.video.read import read_video

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'videopanda[dev]'")
pytestmark = pytest.mark.timeout(600)  # a server has to start
PATIENCE = 120_000  # milliseconds
AXE = Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"


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

    def upload(self, path, frames=8):
        self.page.set_input_files("#file", path)
        if frames:
            sync_api.expect(self.page.locator("#frames button")).to_have_count(frames, timeout=PATIENCE)

    def ask(self, question, number):
        """The answer to a question that is typed, the `number`th of the conversation."""
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        return self.wait_for_answer(number)

    def requests(self):
        """The bodies of the chat requests from now on."""
        bodies = []
        self.page.on("request", lambda r: bodies.append(r.post_data_json) if r.url.endswith("/completions") else None)
        return bodies


@pytest.fixture
def page(browser, server):
    page = Page(browser, server, viewport={"width": 1280, "height": 860})
    yield page
    assert page.errors == []
    assert page.elsewhere == []
    page.context.close()


@pytest.fixture(scope="module")
def nano():
    from videopanda.inference.load import load

    return load(None, device="cpu")


@pytest.fixture(scope="module")
def wanted(nano):
    from videopanda.inference.answer import Chat

    chat = Chat(*nano, DEMO)
    return [chat.ask(question).answer for question in ASKED[:2]]


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
            box.append(render(text, link));
            return box.innerHTML;
        }"""
    )
    assert rendered == (
        "<p><strong>A <em>title</em></strong></p><p><strong>bold</strong> <code>a&lt;b&gt;</code> "
        "&lt;img src=x onerror=alert(1)&gt; at <button>1.5</button></p><ul><li>one</li><li>two</li></ul>"
        '<pre><code>&lt;script&gt;</code></pre><ol start="3"><li>three</li></ol>'
    )
    page.ask(ASKED[3], 0)
    page.answers().first.locator(".time").click()
    page.page.wait_for_function("document.getElementById('player').currentTime === 1")


def test_the_truth_switch_shows_what_the_library_answers(page, nano, wanted):
    from videopanda.inference.answer import ask

    clip = read_video(DEMO, num_frames=8, sampling=nano[1].video_processor.frame_sampling)
    orders = {"frames shuffled": shuffled_order(8, np.random.default_rng(0)), "one frame": one_frame_order(8)}
    expected = {name: ask(*nano, rearrange(clip, order), ASKED[1:2])[0].answer for name, order in orders.items()}
    page.upload(DEMO)
    page.page.check("#truth")
    assert page.ask(ASKED[1], 0) == wanted[1]
    verdict = page.page.locator(".verdict")
    sync_api.expect(verdict).to_contain_text("ideo", timeout=PATIENCE)
    rows = [row.inner_text().split("\t") for row in page.page.locator(".checks tr").all()]
    assert [row[0] for row in rows] == ["without the video", "frames shuffled", "one frame"]
    assert {name: answer for name, answer, _ in rows[1:]} == expected
    assert [row[2] == "the same" for row in rows] == [row[1] == wanted[1] for row in rows]
    assert ("same answer without" in verdict.inner_text()) == (rows[0][1] == wanted[1])


def test_why_shows_what_the_library_explains(page, nano):
    """By keyboard; with pictures, regions and a sentence; kept over a reload; priced beside the next question."""
    from videopanda.inference.explain import explain

    found = explain(*nano, DEMO, ASKED[1])
    page.upload(DEMO)
    page.ask(ASKED[1], 0)
    page.page.locator(".ask-why").focus()
    page.page.keyboard.press("Enter")
    sync_api.expect(page.page.locator(".explaining")).to_contain_text(re.compile(r"[1-9]\d* of \d+ steps"))
    why = page.page.locator(".why")
    sync_api.expect(why.locator(".effects button")).to_have_count(8, timeout=PATIENCE)
    sync_api.expect(why.locator("summary")).to_be_focused()
    for button, frame in zip(why.locator(".effects button").all(), found.frames):
        name = button.text_content()
        assert name.startswith(f"Frame at {frame.time:.2f} s: without it ")
        told = [float(number.replace("−", "-")) for number in re.findall(r"([−+]\d+)\s%", name)[:2]]
        assert told == pytest.approx([-100 * frame.fall, 100 * frame.alone], abs=0.6)
    assert f"{100 * found.probability:.1f} % with the video" in why.inner_text()
    needed = ", ".join(f"{frame.time:.2f} s" for frame in found.frames if frame.fall >= 0.1)
    verdict = f"Without any one of the frames at {needed} the answer is less likely."
    assert why.locator(".verdict").inner_text() == verdict
    most = max(region.fall for region in found.regions)
    assert why.locator(".region").count() == sum(region.fall > most / 4 for region in found.regions) > 0
    for image in why.locator("img").all():
        sync_api.expect(image).to_have_attribute("src", re.compile("^data:image"), timeout=PATIENCE)
    heights = page.page.eval_on_selector_all(".why .line span", "all => all.map((one) => parseFloat(one.style.height))")
    assert int(np.argmax(heights)) == found.ranking[0]
    sync_api.expect(page.page.locator("#cost")).to_contain_text("s for “Why?”")
    why.locator(".effects button").nth(6).click()
    sync_api.expect(page.page.locator("#player")).to_have_js_property("currentTime", found.frames[6].time)
    page.page.reload()
    sync_api.expect(why.locator(".effects button")).to_have_count(8, timeout=PATIENCE)
    for image in why.locator("img").all():
        sync_api.expect(image).to_have_attribute("src", re.compile("^data:image"), timeout=PATIENCE)


def test_why_can_be_stopped_and_belongs_to_its_conversation(page, tmp_path):
    held = []
    page.upload(DEMO)
    page.ask(ASKED[1], 0)
    page.page.route("**/v1/explain", lambda route: held.append(route), times=1)
    page.page.click(".ask-why")
    sync_api.expect(page.answers().first.locator(".verdict")).to_contain_text("one by one")
    page.page.keyboard.press("Escape")
    sync_api.expect(page.page.locator(".ask-why")).to_be_visible()
    assert page.page.locator(".why, .failed, .error").count() == 0
    page.page.route("**/v1/explain", lambda route: held.append(route), times=1)
    page.page.click(".ask-why")
    sync_api.expect(page.page.locator("#stop")).to_be_enabled()
    page.page.wait_for_timeout(200)
    page.upload(ensure_clip(tmp_path, 3, "test", 2))
    held.pop().continue_()
    sync_api.expect(page.page.locator("#conversations")).not_to_contain_text("answering", timeout=PATIENCE)
    assert page.page.locator(".why").count() == 0
    page.page.locator("#conversations .name", has_text=ASKED[1]).click()
    sync_api.expect(page.page.locator(".why .effects button")).to_have_count(8, timeout=PATIENCE)


def test_find_marks_what_the_library_finds(page, nano):
    """In the list and on the timeline, within the chosen part, kept over a reload, exported."""
    from videopanda.inference.find import find

    found = find(DEMO, "the circle turns white", model=nano).intervals[0]
    later = find(DEMO, "the circle is red", model=nano, start=2.0)
    entries, marks = page.page.locator("#moments li"), page.page.locator("#found span")

    def look(description, number):
        page.page.fill("#happens", description)
        page.page.keyboard.press("Enter")
        sync_api.expect(entries).to_have_count(number, timeout=PATIENCE)

    page.upload(DEMO)
    progress = page.page.evaluate_handle(
        """() => {
            const seen = [], text = document.getElementById("finding-text");
            new MutationObserver(() => seen.push(text.textContent)).observe(text, { childList: true });
            return seen;
        }"""
    )
    look("the circle turns white", 1)
    steps = [tuple(map(int, re.findall(r"\d+", text))) for text in dict.fromkeys(progress.json_value()) if "of" in text]
    done, totals = zip(*steps)
    assert list(done) == sorted(done)
    assert done[0] == 0
    assert done[-1] == totals[-1] > 16
    assert set(totals) == {totals[-1]}  # known from the start for an event
    sync_api.expect(page.page.locator("#finding")).to_be_hidden()
    link = entries.locator(".time")
    assert link.inner_text() == f"{found.start:.2f} s – {found.end:.2f} s"
    assert f"{100 * found.confidence:.0f} %" in entries.inner_text()
    left, width = marks.evaluate("(mark) => [parseFloat(mark.style.left), parseFloat(mark.style.width)]")
    assert (left, width) == (pytest.approx(25 * found.start, abs=0.1), pytest.approx(25 * (found.end - found.start)))
    link.click()
    sync_api.expect(page.page.locator("#player")).to_have_js_property("currentTime", found.start)
    page.page.locator("#start").fill("2")
    sync_api.expect(page.page.locator("#frames button").first).to_contain_text("2.", timeout=PATIENCE)
    look("the circle is red", 2)
    assert later.intervals == ()
    told = f"not found, at most {100 * later.most_likely:.0f} % likely"
    sync_api.expect(entries.nth(1)).to_contain_text(told)
    sync_api.expect(entries.nth(1)).to_contain_text("(looked at: from 2.00 s)")
    sync_api.expect(marks).to_have_count(0)
    link.click()
    sync_api.expect(marks).to_have_count(1)
    with page.page.expect_download() as download:
        page.page.click("#export")
    kept = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["moments"]
    assert [moment["description"] for moment in kept] == ["the circle turns white", "the circle is red"]
    page.page.reload()
    sync_api.expect(entries).to_have_count(2, timeout=PATIENCE)
    entries.nth(1).locator(".remove").click()
    sync_api.expect(entries).to_have_count(1)
    sync_api.expect(marks).to_have_count(1)


def test_a_search_can_be_stopped_fails_in_a_line_and_belongs_to_its_conversation(page, tmp_path):
    held = []
    hold = {"url": "**/v1/find", "handler": lambda route: held.append(route), "times": 1}

    def look():
        page.page.fill("#happens", "the circle turns white")
        page.page.keyboard.press("Enter")

    page.upload(DEMO)
    entries = page.page.locator("#moments li")
    page.page.route(**hold)
    look()
    sync_api.expect(page.page.locator("#finding")).to_be_visible()
    sync_api.expect(page.page.locator("#send")).to_be_disabled()
    page.page.click("#find-stop")
    sync_api.expect(page.page.locator("#finding")).to_be_hidden()
    assert entries.count() == 0
    refused = {"error": {"message": "the queue is full: retry later"}}
    page.page.route("**/v1/find", lambda route: route.fulfill(status=429, json=refused), times=1)
    look()
    sync_api.expect(entries.locator(".error")).to_have_text("the queue is full: retry later")
    held.clear()
    page.page.route(**hold)
    look()
    sync_api.expect(page.page.locator("#finding")).to_be_visible()
    page.page.wait_for_timeout(200)
    page.upload(ensure_clip(tmp_path, 3, "test", 2))
    sync_api.expect(page.page.locator("#finding")).to_be_hidden()
    held.pop().continue_()
    sync_api.expect(page.page.locator("#conversations")).not_to_contain_text("answering", timeout=PATIENCE)
    assert entries.count() == page.page.locator("#found span").count() == 0
    page.page.locator("#conversations .name", has_text="demo.mp4").click()
    sync_api.expect(entries.locator(".time")).to_have_count(1, timeout=PATIENCE)


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


@pytest.mark.skipif(not AXE.exists(), reason="no axe: npm install --no-save axe-core@4.14.1")
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
