"""The Dagster UI in headless Chromium: the few clicks that the tests make, each in one place.

Labels, roles and texts are those of the Dagster version in constraints.txt.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PICTURES = os.environ.get("SAE_SCREENSHOTS")
WIDTH, HEIGHT = 1600, 1000
NAVIGATION = 240  # width of the column of links at the left
CLICK_MS, LOAD_MS, WORK_MS = 30_000, 3_000, 240_000
ENDED = re.compile("^(Success|Failure|Canceled)$")
STARTED = re.compile("^Started$")
LAUNCH = re.compile("^Launch ")

Box = tuple[float, float, float, float]
"""Left, top, width and height in the graph's own units."""


def missing() -> str | None:
    """What has to be installed before a browser can be driven, or None; nothing is ever downloaded for it."""
    if importlib.util.find_spec("playwright") is None:
        return "needs the Python package playwright: pip install -c constraints.txt -e '.[dev]'"
    if not _starts(_chromium()):
        return "needs Chromium on the PATH, for instance from the system's packages: apt install chromium"
    return None


def _chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _starts(path: str | None) -> bool:
    """Whether there is a browser and not just a script that says where to get one."""
    return path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine, without a window and without network of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=list(OFFLINE))
        yield browser
        browser.close()


class UI:
    """One tab on the UI of a Dagster instance."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url
        self.page: Page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        self.page.set_default_timeout(CLICK_MS)

    def open(self, path: str) -> None:
        """Go to a page as a reader who types its address."""
        self.page.goto(f"{self.url}/{path}")

    def picture(self, name: str, *, height: int, left: int = NAVIGATION) -> None:
        """Save the upper part of the tab as `name`.png in the folder SAE_SCREENSHOTS, where that is set."""
        if PICTURES:
            clip = {"x": left, "y": 0, "width": WIDTH - left, "height": height}
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png", clip=clip, animations="disabled")

    def folded_groups(self, count: int) -> set[str]:
        """Names in the asset graph while every group is folded, once there are `count`."""
        self._labelled("unfold_more").nth(count - 1).wait_for()
        return set(self._graph("[data-tooltip]").evaluate_all("all => all.map(e => e.dataset.tooltip)"))

    def unfold_graph(self) -> None:
        """Give the graph the whole window and unfold every group."""
        groups = self._labelled("unfold_more").count()
        self.page.get_by_role("button", name="Hide navigation").click()
        self._labelled("panel_show_right").last.click()
        self.page.keyboard.press("Alt+e")  # "Expand all groups" in the menu of the graph
        self._labelled("unfold_less").nth(groups - 1).wait_for()
        self.page.mouse.move(800, 500)
        self.page.mouse.wheel(0, -45)  # Dagster's own fit leaves the uppermost title under the bar

    def group_boxes(self) -> dict[str, Box]:
        """Where the unfolded groups lie in the graph."""
        return {box[0]: box[1:] for box in self._boxes("foreignObject.group", "[data-tooltip]", "dataset.tooltip")}

    def asset_boxes(self) -> dict[str, Box]:
        """Where the assets lie; the middle of a long name is a dot-dot-dot."""
        name = "[class*=assetName]"
        return {box[0]: box[1:] for box in self._boxes(f"foreignObject:has({name})", name, "innerText")}

    def wait_for_green(self, count: int) -> None:
        """Until that many assets of the graph are drawn as materialised."""
        self._graph("[style*=background-green]").nth(count - 1).wait_for()

    def materialise(self, asset: str, autoencoder: str | None = None) -> str:
        """Materialize… on an asset's page: one autoencoder at all sites, or everything.

        Returns:
            Id of the run or the backfill, whose page is open then.
        """
        self.open(f"assets/{asset}")
        self.page.get_by_role("button", name="Materialize…").click()
        dialog = self.page.get_by_role("dialog")
        sure, chooser = dialog.filter(has_text="Are you sure?"), dialog.filter(has_text="Partition selection")
        sure.or_(chooser).wait_for()
        if sure.is_visible():  # Dagster has not seen what this is made from: the study was not made through it
            sure.get_by_role("button", name="Confirm").click()
        launch = chooser.get_by_role("button", name=LAUNCH)
        if autoencoder is None:
            self._choose_all(chooser, launch)
        else:
            self._after(chooser, "site", "button[.='All']").click()
            self._after(chooser, "ae", "*[starts-with(text(), 'Select a partition')]").click()
            self.page.get_by_placeholder("Filter partitions").fill(autoencoder)
            self.page.get_by_role("menuitem", name=autoencoder).click()
            self.page.keyboard.press("Escape")
        launch.click()
        self.page.get_by_role("link", name="View", exact=True).click()
        self.page.wait_for_url("**/runs/**")
        return self.page.url.rpartition("/")[2]

    def run_end(self) -> str:
        """What the page of a run says of it once it has ended."""
        self._end_tag.wait_for(timeout=WORK_MS)
        return self._end_tag.inner_text()

    def ask_to_terminate(self) -> Locator:
        """Terminate the run whose page is open, up to the question; returns the button that confirms it.

        Before the run has started the question would close by itself when it does.
        """
        self.page.locator(".BaseTag").filter(has_text=STARTED).wait_for(timeout=WORK_MS)
        self.page.get_by_role("button", name="Terminate").click()
        return self.page.get_by_role("dialog").get_by_role("button", name="Terminate 1 run")

    def re_execute(self) -> None:
        """Re-execute all of the run whose page is open; opens the page of the new run."""
        self.page.get_by_role("button", name="Re-execute all").click()
        self._end_tag.wait_for(state="hidden")  # that of the old run

    def check(self, name: str) -> Locator:
        """The entry of a check, with its icon and its status, in the list on an asset's page of checks."""
        return self.page.locator(f"xpath=//*[@title='{name}']/ancestor::div[.//*[@role='img']][1]")

    def open_plot(self, name: str) -> Locator:
        """The image behind a [Show Markdown] of a table of metadata, in its dialog."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_role("cell", name=name, exact=True))
        row.get_by_text("[Show Markdown]").click()
        return self.page.get_by_role("dialog").locator("img")

    def close_dialog(self) -> None:
        """Close the open dialog and wait until it is gone."""
        self.page.get_by_role("dialog").get_by_role("button", name="Close").click()
        self.page.get_by_role("dialog").wait_for(state="detached")

    @property
    def _end_tag(self) -> Locator:
        """The tag of status beside the title of a run that has ended; a list of re-executions repeats its text."""
        return self.page.locator(".BaseTag").filter(has_text=ENDED)

    def _graph(self, selector: str) -> Locator:
        return self.page.locator(f"foreignObject {selector}")

    def _labelled(self, label: str) -> Locator:
        return self.page.locator(f'[aria-label="{label}"]')

    def _boxes(self, frame: str, inner: str, name: str) -> list[tuple]:
        """Name and place of every frame of the graph that has `inner` in it."""
        numbers = "['x', 'y', 'width', 'height'].map(side => Number(e.getAttribute(side)))"
        script = f"all => all.map(e => [e.querySelector('{inner}').{name}, ...{numbers}])"
        return [tuple(row) for row in self.page.locator(frame).evaluate_all(script)]

    def _choose_all(self, chooser: Locator, launch: Locator) -> None:
        """Every partition of both dimensions; again where the keys came only after the click, as a person would."""
        from playwright.sync_api import expect

        for patience_ms in (LOAD_MS,) * 5 + (CLICK_MS,):
            for dimension in ("site", "ae"):
                self._after(chooser, dimension, "button[.='All']").click()
            with contextlib.suppress(AssertionError):
                expect(launch).to_be_enabled(timeout=patience_ms)
                return

    def _after(self, dialog: Locator, dimension: str, what: str) -> Locator:
        """The first `what` (XPath) that follows the heading of a dimension of partitions."""
        return dialog.locator(f"xpath=.//span[.='{dimension}']/following::{what}[1]")


def is_red(icon: Locator) -> bool:
    """Whether an icon is drawn in red: more of it than twice any other colour."""
    colour = icon.evaluate("e => getComputedStyle(e).backgroundColor")
    red, green, blue = (float(number) for number in re.findall(r"[\d.]+", colour)[:3])
    return red > 2 * max(green, blue)


def colours_in(image: Locator) -> int:
    """How many colours a decoded image has; one that is broken or empty has one at most."""
    return image.evaluate(
        """async image => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            const pen = canvas.getContext('2d');
            pen.drawImage(image, 0, 0);
            const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        }"""
    )
