"""Takes the pictures of the page for the docs, with a server of its own.

python tests/serving/screenshots.py docs/images
"""

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

import av
from live import Server
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conftest import CAMERA
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.video.read import read_video

DEMO = BUNDLED_MODEL.parent / "demo.mp4"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 120_000  # milliseconds


class Album:
    """The pictures of a folder: one of each state, and two of all states, in the dark and on a dark phone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.twins: dict[str, list[Image.Image]] = {"dark": [], "phone": []}

    def shoot(self, page: Page, name: str, whole: bool = False, twins: bool = True) -> None:
        """Take a picture, and its twins."""
        self.save(name, taken(page, whole))
        if not twins:
            return
        theme = page.evaluate("document.documentElement.dataset.theme")
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        dark = taken(page, whole)
        self.twins["dark"].append(dark.resize((dark.width // 2, dark.height // 2), Image.Resampling.LANCZOS))
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(200)
        self.twins["phone"].append(taken(page, whole or not page.locator("dialog[open]").count()))
        page.set_viewport_size(DESKTOP)
        page.evaluate("(theme) => Object.assign(document.documentElement.dataset, { theme })", theme)
        if theme is None:
            page.evaluate("delete document.documentElement.dataset.theme")

    def save(self, name: str, picture: Image.Image) -> None:
        """With few colors, so that it is small: those of large areas exactly, and rare ones nearly."""
        path = self.folder / f"page-{name}.png"
        methods = Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE
        colors = [value for method in methods for value in picture.quantize(96, method).getpalette()[: 3 * 96]]
        palette = Image.new("P", (1, 1))
        palette.putpalette(colors)
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

    def finish(self) -> None:
        """Write the two pictures of all states."""
        for name, columns in (("dark", 4), ("phone", 9)):
            self.save(f"{name}-states", in_rows(self.twins[name], columns))


def taken(page: Page, whole: bool) -> Image.Image:
    """What the page looks like now."""
    return Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")


def in_rows(pictures: list[Image.Image], columns: int, gap: int = 16) -> Image.Image:
    """Pictures of one width in rows."""
    rows = [pictures[at : at + columns] for at in range(0, len(pictures), columns)]
    width = max(picture.width for picture in pictures) + gap
    heights = [max(picture.height for picture in row) + gap for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, sum(heights[:number])))
    return sheet


def asked(page: Page, question: str) -> None:
    """Ask, and wait for the answer and its checks."""
    count = page.locator("#log .assistant").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    expect(page.locator("#log .note")).to_have_count(count + 1, timeout=PATIENCE)
    expect(page.locator("#stop")).to_be_disabled(timeout=PATIENCE)


def look(page: Page, album: Album, description: str, progress: str = "") -> None:
    """Look for an event, with a picture named `progress` on the way."""
    count = page.locator("#moments li").count()
    page.fill("#happens", description)
    page.keyboard.press("Enter")
    if progress:
        expect(page.locator("#finding-text")).to_contain_text(re.compile(r"[1-9]\d* of"), timeout=PATIENCE)
        album.shoot(page, progress)
    expect(page.locator("#moments li")).to_have_count(count + 1, timeout=PATIENCE)


def tour(browser: Browser, url: str, album: Album, unplayable: Path) -> None:
    """Every state of the page."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#model")).not_to_be_empty(timeout=PATIENCE)
    album.shoot(page, "empty")
    page.set_input_files("#file", Path(__file__))
    expect(page.locator("#problem")).to_be_visible(timeout=PATIENCE)
    album.shoot(page, "problem")
    page.click("#example")
    expect(page.locator("#ideas button").first).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#frames button")).to_have_count(8, timeout=PATIENCE)
    look(page, album, "the red circle turns white", "find-progress")
    look(page, album, "the green triangle vanishes")
    page.locator("#moments .time").click()
    page.wait_for_timeout(500)
    album.shoot(page, "find", whole=True)
    asked(page, "What shape is the red object?")
    asked(page, "Which colour does the circle become?")
    page.check("#truth")
    asked(page, "When does the circle change colour?")
    page.evaluate("document.getElementById('player').currentTime = 2")
    page.wait_for_timeout(500)
    album.shoot(page, "desktop", whole=True)
    page.click("#theme")
    album.shoot(page, "dark", whole=True, twins=False)
    page.click("#theme")
    page.locator(".ask-why").nth(1).click()
    expect(page.locator(".explaining")).to_contain_text(re.compile(r"[1-9]\d* of"), timeout=PATIENCE)
    album.shoot(page, "why-progress")
    expect(page.locator(".why .effects button")).to_have_count(8, timeout=PATIENCE)
    for image in page.locator(".why img").all():
        expect(image).to_have_attribute("src", re.compile("^data:image"), timeout=PATIENCE)
    page.locator(".why").evaluate("(why) => why.closest('.assistant').scrollIntoView()")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    album.shoot(page, "why", whole=True)
    page.locator(".why summary").click()
    page.click("#theme")
    page.locator("#log .edit").nth(1).click()
    page.locator("#count").fill("5")
    expect(page.locator("#frames button")).to_have_count(5, timeout=PATIENCE)
    page.locator("#start").fill("1")
    page.wait_for_timeout(1500)
    album.shoot(page, "edit", whole=True)
    page.click("#keep")
    page.click("#about")
    expect(page.locator("#facts")).to_be_visible()
    album.shoot(page, "model")
    page.keyboard.press("Escape")
    page.click("#live-start")
    expect(page.locator("#live-status")).to_contain_text("Sent: 2", timeout=PATIENCE)
    page.fill("#live-question", "How many objects does the video show in total?")
    page.keyboard.press("Enter")
    expect(page.locator("#live-log .assistant")).to_contain_text("visual tokens)", timeout=PATIENCE)
    album.shoot(page, "camera")
    page.click("#live-close")
    page.click("text=Copy as Python")
    expect(page.locator("#code")).to_be_visible()
    album.shoot(page, "code")
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE)
    page.locator(".why summary").click()
    page.locator(".why").evaluate("(why) => why.scrollIntoView()")
    page.wait_for_timeout(500)
    album.shoot(page, "why-phone", twins=False)
    page.locator(".why summary").click()
    page.locator("#timeline").evaluate("(timeline) => timeline.scrollIntoView()")
    album.shoot(page, "find-phone", twins=False)
    page.evaluate("scrollTo(0, 0)")
    page.click("#theme")
    album.shoot(page, "phone", whole=True, twins=False)
    page.set_viewport_size(DESKTOP)
    context.set_offline(True)
    page.fill("#question", "Which way does the blue cross move?")
    page.keyboard.press("Enter")
    expect(page.locator("#log .error")).to_be_visible()
    album.shoot(page, "lost")
    page.locator("#conversations .remove").first.click()
    expect(page.locator("#undo")).to_be_visible()
    album.shoot(page, "deleted")
    context.close()
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.goto(url)
    page.set_input_files("#file", unplayable)
    expect(page.locator("#status")).to_contain_text("cannot play", timeout=PATIENCE)
    album.shoot(page, "stills", whole=True)
    context.close()
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    health = {"status": "ok", "model": "nano", "needs_key": True, "running": 0, "waiting": 0}
    page.route("**/health", lambda route: route.fulfill(json=health))
    page.goto(url)
    expect(page.locator("#key-form")).to_be_visible(timeout=PATIENCE)
    album.shoot(page, "key")
    context.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        server = Server(Path(temporary) / "files")
        path = shutil.which("chromium") or playwright.chromium.executable_path
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *CAMERA])
        album = Album(Path(sys.argv[1]))
        unplayable = Path(temporary) / "demo.avi"
        with av.open(str(unplayable), "w") as file:
            stream = file.add_stream("mpeg4", rate=10, width=256, height=144)
            for frame in read_video(DEMO, fps=10).frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            file.mux(stream.encode())
        try:
            tour(chromium, server.url, album, unplayable)
            album.finish()
        finally:
            chromium.close()
            server.stop()
