"""Takes the pictures of the page for the docs, with a server of its own.

python tests/serving/screenshots.py docs/images
"""

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from live import Server
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conftest import CAMERA
from videopanda.inference.load import BUNDLED_MODEL

DEMO = BUNDLED_MODEL.parent / "demo.mp4"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 120_000  # milliseconds


def shoot(page: Page, folder: Path, name: str, whole: bool = False) -> None:
    """One picture, with few colors so that it is small: those of large areas exactly, and rare ones nearly."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    path = folder / f"page-{name}.png"
    methods = Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE
    colors = [value for method in methods for value in picture.quantize(96, method).getpalette()[: 3 * 96]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors)
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def asked(page: Page, question: str) -> None:
    """Ask, and wait for the answer and its checks."""
    count = page.locator("#log .assistant").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    expect(page.locator("#log .note")).to_have_count(count + 1, timeout=PATIENCE)
    expect(page.locator("#stop")).to_be_disabled(timeout=PATIENCE)


def look(page: Page, folder: Path, description: str, progress: str = "") -> None:
    """Look for an event, with a picture named `progress` on the way."""
    count = page.locator("#moments li").count()
    page.fill("#happens", description)
    page.keyboard.press("Enter")
    if progress:
        expect(page.locator("#finding-text")).to_contain_text(re.compile(r"[1-9]\d* of"), timeout=PATIENCE)
        shoot(page, folder, progress)
    expect(page.locator("#moments li")).to_have_count(count + 1, timeout=PATIENCE)


def tour(browser: Browser, url: str, folder: Path) -> None:
    """Every state of the page."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#model")).not_to_be_empty(timeout=PATIENCE)
    shoot(page, folder, "empty")
    page.set_input_files("#file", Path(__file__))
    expect(page.locator("#problem")).to_be_visible(timeout=PATIENCE)
    shoot(page, folder, "problem")
    page.click("#example")
    expect(page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    look(page, folder, "the red circle turns white", "find-progress")
    look(page, folder, "the green triangle vanishes")
    page.locator("#moments .time").click()
    page.wait_for_timeout(500)
    shoot(page, folder, "find", whole=True)
    asked(page, "What shape is the red object?")
    asked(page, "Which colour does the circle become?")
    page.check("#truth")
    asked(page, "When does the circle change colour?")
    page.evaluate("document.getElementById('player').currentTime = 2")
    page.wait_for_timeout(500)
    shoot(page, folder, "desktop", whole=True)
    page.click("#theme")
    shoot(page, folder, "dark", whole=True)
    page.click("#theme")
    page.locator(".ask-why").nth(1).click()
    expect(page.locator(".explaining")).to_contain_text(re.compile(r"[1-9]\d* of"), timeout=PATIENCE)
    shoot(page, folder, "why-progress")
    expect(page.locator(".why .effects button")).to_have_count(8, timeout=PATIENCE)
    for image in page.locator(".why img").all():
        expect(image).to_have_attribute("src", re.compile("^data:image"), timeout=PATIENCE)
    page.locator(".why").evaluate("(why) => why.closest('.assistant').scrollIntoView()")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    shoot(page, folder, "why", whole=True)
    page.locator(".why summary").click()
    page.click("#theme")
    page.locator("#log .edit").nth(1).click()
    page.locator("#count").fill("5")
    expect(page.locator("#frames button")).to_have_count(5, timeout=PATIENCE)
    page.locator("#start").fill("1")
    page.wait_for_timeout(1500)
    shoot(page, folder, "edit", whole=True)
    page.click("#keep")
    page.click("#about")
    expect(page.locator("#facts")).to_be_visible()
    shoot(page, folder, "model")
    page.keyboard.press("Escape")
    page.click("#live-start")
    expect(page.locator("#live-status")).to_contain_text("Sent: 2", timeout=PATIENCE)
    page.fill("#live-question", "How many objects does the video show in total?")
    page.keyboard.press("Enter")
    expect(page.locator("#live-log .assistant")).to_contain_text("visual tokens)", timeout=PATIENCE)
    shoot(page, folder, "camera")
    page.click("#live-close")
    page.click("text=Copy as Python")
    expect(page.locator("#code")).to_be_visible()
    shoot(page, folder, "code")
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE)
    page.locator(".why summary").click()
    page.locator(".why").evaluate("(why) => why.scrollIntoView()")
    page.wait_for_timeout(500)
    shoot(page, folder, "why-phone")
    page.locator(".why summary").click()
    page.locator("#timeline").evaluate("(timeline) => timeline.scrollIntoView()")
    shoot(page, folder, "find-phone")
    page.evaluate("scrollTo(0, 0)")
    page.click("#theme")
    shoot(page, folder, "phone", whole=True)
    page.set_viewport_size(DESKTOP)
    page.locator("#conversations .remove").first.click()
    expect(page.locator("#undo")).to_be_visible()
    shoot(page, folder, "deleted")
    context.close()
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    health = {"status": "ok", "model": "nano", "needs_key": True, "running": 0, "waiting": 0}
    page.route("**/health", lambda route: route.fulfill(json=health))
    page.goto(url)
    expect(page.locator("#key-form")).to_be_visible(timeout=PATIENCE)
    shoot(page, folder, "key")
    context.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        server = Server(Path(temporary) / "files")
        path = shutil.which("chromium") or playwright.chromium.executable_path
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *CAMERA])
        try:
            tour(chromium, server.url, Path(sys.argv[1]))
        finally:
            chromium.close()
            server.stop()
