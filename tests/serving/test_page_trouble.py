"""Protects the page in trouble: clips that the browser cannot play, two tabs, a reload in mid-answer, a lost server, a
server with a key and limits.
"""

import json

import pytest
from browser_page import PATIENCE, Page, sync_api
from live import Server
from test_api import ASKED, DEMO

from media import write_video

pytestmark = pytest.mark.timeout(600)  # a server has to start


def make_long(page):
    """The requests from now on become streams of many pieces: the model repeats what it does not know."""
    story = {"messages": [{"role": "user", "content": "a b c d e f g " * 40}], "temperature": 0.0, "max_tokens": 1000}

    def longer(route):
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), **story}))

    page.route("**/v1/chat/completions", longer)


def test_a_clip_that_the_browser_cannot_play_is_shown_as_frames(page, tmp_path):
    page.upload(write_video(tmp_path / "clip.avi", range(40), fps=10, codec="mpeg4"))
    picture, player = page.page.locator("#picture"), page.page.locator("#player")
    sync_api.expect(page.page.locator("#status")).to_contain_text("this browser cannot play it", timeout=PATIENCE)
    sync_api.expect(player).to_be_hidden()
    frames = page.page.locator("#frames button")
    sync_api.expect(picture).to_have_attribute("src", frames.first.locator("img").get_attribute("src"))
    frames.nth(5).click()
    sync_api.expect(picture).to_have_attribute("src", frames.nth(5).locator("img").get_attribute("src"))
    time = float(frames.nth(5).inner_text().split()[0])
    left = page.page.evaluate("parseFloat(document.getElementById('playhead').style.left)")
    assert left == pytest.approx(100 * time / 4.0, abs=0.1)
    moving = write_video(tmp_path / "clip.gif", range(20), fps=10, codec="gif", pix_fmt="rgb8")
    page.upload(moving)
    sync_api.expect(picture).to_have_js_property("naturalWidth", 64)
    sync_api.expect(player).to_be_hidden()


def test_several_files_are_as_many_conversations(page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(DEMO.read_bytes()[:500])
    page.page.set_input_files("#file", [broken, DEMO, write_video(tmp_path / "other.mp4", range(30))])
    names = page.page.locator("#conversations .name")
    sync_api.expect(names).to_have_text(["other.mp4", "demo.mp4"], timeout=PATIENCE)
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    names.nth(1).click()
    sync_api.expect(page.page.locator("#status")).to_have_text("demo.mp4, 4.0 s")


def test_two_tabs_show_the_same_conversations(page, server, wanted):
    page.upload(DEMO)
    other = page.context.new_page()
    other.goto(server.url)
    sync_api.expect(other.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    assert page.ask(ASKED[0], 0) == wanted[0]
    sync_api.expect(other.locator("#log .assistant .text")).to_have_text([wanted[0]])
    other.fill("#question", ASKED[1])
    other.keyboard.press("Enter")
    sync_api.expect(page.answers().locator(".note")).to_have_count(2, timeout=PATIENCE)
    sync_api.expect(page.answers().locator(".text")).to_have_text(wanted)
    make_long(other)
    other.fill("#question", "Tell me a long story.")
    other.keyboard.press("Enter")
    sync_api.expect(page.answers()).to_have_count(3)
    page.page.fill("#question", ASKED[0])
    page.page.keyboard.press("Enter")
    sync_api.expect(page.page.locator("#problem")).to_contain_text("in another tab")
    other.click("#stop")
    sync_api.expect(page.answers().nth(2).locator(".note")).to_have_text("stopped", timeout=PATIENCE)
    other.click("#new")
    other.locator("#conversations .remove").last.click()
    sync_api.expect(page.page.locator("#conversations .name")).to_have_count(1)  # it is shown here
    page.page.click("#new")
    other.close()


def test_a_reload_in_mid_answer_keeps_what_was_said(page):
    page.upload(DEMO)
    make_long(page.page)
    page.page.fill("#question", "Tell me a long story.")
    page.page.keyboard.press("Enter")
    text = page.answers().nth(0).locator(".text")
    sync_api.expect(text).not_to_be_empty(timeout=PATIENCE)
    said = text.inner_text()
    page.page.reload()
    assert page.wait_for_answer(0).startswith(said)
    sync_api.expect(page.answers().nth(0).locator(".note")).to_have_text("stopped")


def test_a_server_that_is_gone_is_told_and_asked_again(page, wanted):
    page.upload(DEMO)
    page.context.set_offline(True)
    page.page.fill("#question", ASKED[0])
    page.page.keyboard.press("Enter")
    sync_api.expect(page.answers().locator(".error")).to_have_text("The server cannot be reached.")
    page.context.set_offline(False)
    page.page.click(".again")
    assert page.wait_for_answer(0) == wanted[0]


def test_a_key_is_asked_for_and_kept_and_a_file_that_is_too_large_is_refused(browser, tmp_path):
    server = Server(tmp_path / "files", "--api-key", "sesame", "--max-upload", "1")
    page = Page(browser, server)
    problem = page.page.locator("#problem")
    page.upload(DEMO, frames=0)
    sync_api.expect(problem).to_have_text("demo.mp4: Enter the API key of this server first.", timeout=PATIENCE)
    for key, words in (("wrong", "The server does not accept this API key."), ("sesame", "")):
        page.page.fill("#key", key)
        page.page.keyboard.press("Enter")
        sync_api.expect(problem).to_have_text(words)
    page.upload(DEMO)
    large = tmp_path / "large.mp4"
    large.write_bytes(DEMO.read_bytes() + bytes(1 << 20))
    page.upload(large, frames=0)
    sync_api.expect(problem).to_have_text("large.mp4: larger than 1 MiB, the limit of this server.", timeout=PATIENCE)
    page.page.locator("#conversations .name", has_text="demo.mp4").click()
    page.page.reload()
    sync_api.expect(page.page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    assert page.errors == []
    page.context.close()
    server.stop()
