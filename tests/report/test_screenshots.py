"""The page looks as it did: screenshots against committed ones, coarse enough for other fonts, not for broken layouts.

After a change that is meant, look at the new screenshots, which a failing test writes into a folder that it names, and
put them in place of those in `screenshots/`.
"""

import io
from pathlib import Path

import numpy
import pytest
from PIL import Image
from report_runs import write_grid

from linearpatch.report.report import write_report

REFERENCES = Path(__file__).parent / "screenshots"
CELLS = 40  # of a side, over which differences are averaged
MOST_APART = 0.03  # mean difference of the cells' grey, of 1
MOST_HIGHER = 1.2  # ratio of heights
PARTS = ("#figures", "#matrix", "#comparison")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    write_grid(folder / "runs", sizes=(3, 5, 7))
    write_report([folder / "runs"], folder / "report", title="SLEB, ShortGPT and LLM-Streamline")
    return folder / "report" / "report.html"


@pytest.fixture(params=[1280, 390])
def tab(request, browser, page_file):
    context = browser.new_context(viewport={"width": request.param, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready=all]", timeout=60_000)
    page.wait_for_timeout(200)
    page.width = request.param
    yield page
    context.close()


def taken(tab, part):
    return Image.open(io.BytesIO(tab.locator(part).screenshot())).convert("RGB")


def apart(first, second):
    """Mean difference of two pictures in grey, cell by cell; infinite where their shapes differ."""
    shapes = [picture.height / picture.width for picture in (first, second)]
    if max(shapes) / min(shapes) > MOST_HIGHER:
        return float("inf")
    cells = [
        numpy.asarray(picture.convert("L").resize((CELLS, CELLS), Image.Resampling.BOX), dtype=float) / 255
        for picture in (first, second)
    ]
    return float(numpy.abs(cells[0] - cells[1]).mean())


def test_each_part_looks_as_it_did(tab, tmp_path):
    different = {}
    for part in PARTS:
        name = f"{part[1:]}_{tab.width}.png"
        now = taken(tab, part)
        now.thumbnail((640, 4000))
        now.quantize(64).save(tmp_path / name, optimize=True)
        reference = Image.open(REFERENCES / name).convert("RGB")
        if (distance := apart(now, reference)) > MOST_APART:
            different[name] = distance
    assert not different, f"compare {tmp_path} with {REFERENCES}"


@pytest.mark.parametrize("tab", [1280], indirect=True)  # in a narrow column, another font breaks lines elsewhere
def test_other_fonts_are_tolerated_and_broken_layouts_are_not(tab):
    before = {part: taken(tab, part) for part in PARTS}
    tab.add_style_tag(content="body, body * { font-family: serif !important }")
    fonts = {part: apart(before[part], taken(tab, part)) for part in PARTS}
    assert max(fonts.values()) <= MOST_APART, fonts
    tab.evaluate("document.querySelectorAll('style').forEach(style => style.remove())")
    broken = {part: apart(before[part], taken(tab, part)) for part in PARTS}
    assert max(broken.values()) > 2 * MOST_APART, broken
