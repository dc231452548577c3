"""A report's page in headless Chromium: it asks for nothing, complains of nothing, and fits."""

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import (
    ASKS,
    BROWSER,
    COMPLAINS,
    DESK,
    OVERFLOW,
    PHONE,
    Browser,
    browsing,
)
from tests.reporting import IMAGES, make_runs, report

pytestmark = pytest.mark.skipif(not BROWSER, reason="chromium is not installed")

FIGURES = """
[...document.querySelectorAll("figure")].map(figure => ({
  title: figure.querySelector("h3").textContent,
  caption: figure.querySelector("figcaption").textContent,
  pictures: [...figure.querySelectorAll("img, svg:not([aria-hidden])")].map(picture => ({
    name: picture.alt || picture.role == "img" && picture.getAttribute("aria-label"),
    width: picture.getBoundingClientRect().width,
  })),
}))
"""
COLOURS = """
[getComputedStyle(document.body).backgroundColor,
 getComputedStyle(document.querySelector("figure svg text")).fill]
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run that has everything, and of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    make_runs(folder, ("pretrain", "run.dir=mine", *IMAGES))
    _add_results(folder / "mine")
    other = shutil.copytree(folder / "mine", folder / "a-run-with-a-long-name", symlinks=True)
    pages = {name: folder / f"{name}.html" for name in ("one", "two")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report(patch, "mine", "--output", pages["one"], "--images", 2)
        report(patch, "mine", other, "--output", pages["two"], "--images", 2)
    return pages


def _add_results(run: Path) -> None:
    cells = [{"layer": layer, "pooling": "average", "accuracy/5shot": 0.3} for layer in (1, 2)]
    (run / "fewshot").mkdir()
    (run / "fewshot/result.json").write_text(json.dumps({"cells": cells, **cells[0]}))
    (run / "bad_samples.jsonl").write_text('{"step": 3, "reason": "torn"}\n')


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("name", ["one", "two"])
def test_nothing_is_asked_for_and_nothing_goes_wrong(
    browser: Browser, pages: dict[str, Path], name: str
):
    browser.look(DESK)
    browser.open(pages[name])
    asked = [what["request"]["url"] for how, what in browser.events if how == ASKS]
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert [event for event in browser.events if event[0] in COMPLAINS] == []


def test_a_page_that_asks_and_complains_is_noticed(browser: Browser, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text('<img src="other.png"><script>console.error("no")</script>')
    browser.open(page)
    asked = [what["request"]["url"] for how, what in browser.events if how == ASKS]
    assert (tmp_path / "other.png").as_uri() in asked
    assert {how for how, _ in browser.events} >= {"Runtime.consoleAPICalled", "Log.entryAdded"}


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_figures_are_named_explained_and_within_the_screen(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
):
    browser.look(size)
    browser.open(pages[name])
    assert browser.ask(OVERFLOW) == 0
    figures = browser.ask(FIGURES)
    titles = {figure["title"] for figure in figures}
    assert {"Throughput", "Attention rollout", "Principal filters of the patch embedding"} <= titles
    for figure in figures:
        assert len(figure["caption"]) > 20, figure
        assert len(figure["pictures"]) == 1, figure
        assert figure["pictures"][0]["name"], figure
        assert 250 < figure["pictures"][0]["width"] <= size[0], figure


BOX = """
(() => {
  const box = document.querySelector(".clickable");
  box.scrollIntoView();
  const place = box.querySelector("button").getBoundingClientRect();
  return [place.left, place.top, place.width, place.height];
})()
"""
CHOSEN = """
[...document.querySelectorAll(".clickable")].map(box => [
  box.querySelector("output").textContent,
  ...[...box.querySelectorAll("canvas")].map(canvas => canvas.toDataURL()),
])
"""
BRIGHTEST = """
(() => {
  const canvas = document.querySelector(".clickable canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const sums = Array.from({ length: data.length / 4 }, (_, n) => data[4 * n] + data[4 * n + 1]);
  return [canvas.width, canvas.height, sums.indexOf(Math.max(...sums)), data[3]];
})()
"""


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_click_or_a_key_chooses_a_patch(
    browser: Browser, pages: dict[str, Path], size: tuple[int, int]
) -> None:
    browser.look(size)
    browser.open(pages["one"])
    first = browser.ask(CHOSEN)
    assert [box[0] for box in first] == ["row 3 of 4, column 3 of 4"] * 4
    left, top, width, height = browser.ask(BOX)
    x, y = left + 0.9 * width, top + 0.3 * height
    for event in ("mousePressed", "mouseReleased"):
        where: dict[str, Any] = {"x": x, "y": y, "button": "left", "clickCount": 1}
        browser.tell("Input.dispatchMouseEvent", type=event, **where)
    clicked = browser.ask(CHOSEN)
    assert clicked[0][0] == "row 2 of 4, column 4 of 4"
    assert clicked[0][1:] != first[0][1:]
    assert clicked[1:] == first[1:]  # the other images stay
    assert browser.ask(BRIGHTEST) == [4, 4, 7, 255]  # the chosen patch is most like itself
    for kind in ("keyDown", "keyUp"):
        browser.tell("Input.dispatchKeyEvent", type=kind, key="ArrowDown", code="ArrowDown")
    assert browser.ask(CHOSEN)[0][0] == "row 3 of 4, column 4 of 4"
    assert [event for event in browser.events if event[0] in COMPLAINS] == []


def test_the_owner_of_a_dark_screen_gets_a_dark_page(browser: Browser, pages: dict[str, Path]):
    shown: list[tuple[int, int]] = []
    for scheme in ("light", "dark"):
        browser.look(DESK, scheme)
        browser.open(pages["one"])
        ground, ink = map(_brightness, browser.ask(COLOURS))
        shown.append((ground, ink))
    (light, dark_ink), (dark, light_ink) = shown
    assert light > 700 > 200 > dark_ink
    assert dark < 100 < 600 < light_ink


def _brightness(colour: str) -> int:
    """Add up the parts of rgb(R, G, B)."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
