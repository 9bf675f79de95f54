"""Protects what the page finds out about answers and clips, in a real browser: the truth switch, "Why?", moments."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser_page import PATIENCE, sync_api
from test_api import ASKED, DEMO

from videopanda.data.worlds.scenes.make import ensure_clip
from videopanda.evaluation.conditions import rearrange
from videopanda.video.order import one_frame_order, shuffled_order
from videopanda.video.read import read_video

pytestmark = pytest.mark.timeout(600)  # a server has to start


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
    sync_api.expect(entries.nth(1)).to_contain_text(later.reason)
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
