"""Take pictures of Prefect's pages with a Chromium that is on this machine."""

# Playwright and Pillow are installed by `make gallery` only, so that the checks run without them.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, sync_playwright

from gallery_album import GalleryError, Picture

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH = 1280
"""Pixels of the browser's window; the menu on its left is not in the pictures."""

COLOURS = 64
PAGE_SECONDS = 60

# What a page still has to fetch, to draw or to move.
BUSY = """() => [...document.querySelectorAll(
    '[class*="animate-pulse"], [class*="skeleton"], [data-slot="skeleton"], .p-loading-icon, .p-skeleton'
)].some(each => each.getBoundingClientRect().height > 0)"""
# Text as a reader sees it, and where it ends.
REPLACE = """([names]) => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode())
        for (const [name, other] of names) {
            const text = texts.currentNode
            if (text.data.includes(name)) text.data = text.data.replaceAll(name, other)
        }
}"""
DRAWN = "document.querySelectorAll('main pre svg[id^=mermaid]').length"
BOTTOM = """([selectors]) => Math.max(...selectors.flatMap(
    selector => [...document.querySelectorAll(selector)].map(each => each.getBoundingClientRect().bottom)
), 0)"""


@dataclass(frozen=True)
class Interface:
    """One of Prefect's two user interfaces.

    Attributes:
        name: What it is called in the name of a picture.
        prefix: Where its pages begin.
        main: What holds a page, without the menu beside it.
        ends: What a picture has to show whole, when it is not too tall.
    """

    name: str
    prefix: str
    main: str
    ends: tuple[str, ...]


INTERFACES = (
    Interface("v2", "/v2", "main", ("main > div > *", "aside > div > *")),
    Interface(
        "v1",
        "",
        ".app-router-view__view",
        (".app-router-view__view section", ".artifact-details", ".p-tabs", ".artifact-collections"),
    ),
)


def find_browser() -> str:
    """Return the path of a Chromium.

    Raises:
        GalleryError: If there is none.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise GalleryError(
            f"No Chromium is on PATH: none of {', '.join(BROWSERS)}. Install one, on Debian by "
            "`apt-get install chromium fonts-noto-color-emoji`, or name it in CHROMIUM."
        )
    return found


class Camera:
    """Takes pictures of the pages of one Prefect server.

    Args:
        page: The browser's page.
        address: Of the server.
        folder: Where the pictures go.
        hidden: What pictures show something else for, and what that is; the longer first.
        forbidden: Words that no picture may show even then.
    """

    def __init__(
        self, page: Page, address: str, folder: Path, hidden: Mapping[str, str], forbidden: Collection[str]
    ) -> None:
        self._page, self._address, self._folder = page, address, folder
        self._hidden, self._forbidden = hidden, forbidden

    def take(self, picture: Picture, path: str) -> None:
        """Take a picture of a page in each interface; its file is `<name>-<interface>.png`."""
        for interface in INTERFACES:
            try:
                self._open(picture, interface, path)
            except BrowserError as error:
                raise GalleryError(f"No picture {picture.name} of {interface.name}: {error.message}") from error
            self._check(picture)
            self._save(picture, interface)

    def _open(self, picture: Picture, interface: Interface, path: str) -> None:
        self._page.set_viewport_size({"width": WIDTH, "height": picture.tallest})
        self._page.goto(f"{self._address}{interface.prefix}{path}")
        if picture.tab:
            self._page.get_by_text(picture.tab, exact=True).first.click()
        self._page.get_by_text(picture.shows).first.wait_for()
        if interface.name == "v2" and picture.drawings:
            self._page.wait_for_function(f"{DRAWN} >= {picture.drawings}")
        self._settle()
        self._page.evaluate(REPLACE, [list(self._hidden.items())])

    def _settle(self) -> None:
        self._page.wait_for_load_state("networkidle")
        self._page.wait_for_function(f"() => !({BUSY})()")
        self._page.evaluate("document.fonts.ready")
        # Two frames: one to lay out, one to paint.
        self._page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _check(self, picture: Picture) -> None:
        text = self._page.inner_text("body")
        if found := [each for each in self._forbidden if re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text)]:
            raise GalleryError(f"The picture {picture.name} would show {', '.join(found)}.")

    def _save(self, picture: Picture, interface: Interface) -> None:
        file = self._folder / f"{picture.name}-{interface.name}.png"
        box = self._page.locator(interface.main).first.bounding_box()
        if box is None:
            raise GalleryError(f"{file.name}: the page has no {interface.main}.")
        bottom = self._page.evaluate(BOTTOM, [list(interface.ends)])
        height = min(picture.tallest, max(200, bottom + 16))
        shot = self._page.screenshot(
            clip={"x": box["x"], "y": 0, "width": WIDTH - box["x"], "height": height}, animations="disabled"
        )
        with Image.open(io.BytesIO(shot)) as image:
            small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            small.save(file, optimize=True)
        print(f"{file.name:<34}{small.width:>5} x {small.height:<5}{file.stat().st_size / 1024:>6,.0f} KiB", flush=True)


@contextmanager
def camera(address: str, folder: Path, hidden: Mapping[str, str], forbidden: Collection[str]) -> Iterator[Camera]:
    """Start a browser that reaches nothing but one server; give a camera, and end the browser afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        context = browser.new_context(locale="en-GB", timezone_id="UTC", color_scheme="light", reduced_motion="reduce")
        context.set_default_timeout(PAGE_SECONDS * 1000)
        context.route(lambda url: not url.startswith(address), lambda route: route.abort())
        try:
            yield Camera(context.new_page(), address, folder, hidden, forbidden)
        finally:
            browser.close()
