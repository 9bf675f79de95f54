"""The page of a server in a browser, as tests use it, and what goes wrong in it."""

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'videopanda[dev]'")
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
