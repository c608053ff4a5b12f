"""The page in a browser: what people do with it, and what records can't do to them."""

import json
import re
from dataclasses import replace

import pytest
from report_runs import metric, record, write

from linearpatch.report.page import script_json
from linearpatch.report.report import write_report

EVIL = "<img src=x onerror=alert(1)>"


def rated(ppl, rate, **more):
    return {"ppl/wikitext2": metric(ppl, **more), "speed/prefill_tokens_per_s": metric(rate, unit="1/s")}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = [
        record(pruner, patch, removed=range(1, 1 + n), seed=seed, dense=rated(10.0, 100.0),
               pruned=rated(20.0 + n, 120.0), patched=rated(9.0 + n + seed, 118.0))
        for pruner in ("sleb", "tail") for patch in ("rotate", "lstsq") for n in (2, 10) for seed in (0, 1)
    ]  # fmt: skip
    evil = record(pruner=EVIL, patch="</script><script>alert(1)</script>", removed=(4,), patched=9.5)
    evil = replace(evil, run_id=EVIL, command=EVIL, config={**evil.config, EVIL: EVIL, "patch": {"a": float("inf")}})
    evil.model = replace(evil.model, name=EVIL)
    (folder / "runs" / "evil").mkdir(parents=True)
    (folder / "runs" / "evil" / "result.json").write_text(evil.to_json())
    failed = record(patch="scalar")
    failed.status, failed.error, failed.run_id = "failed", EVIL, "failed-run"
    write(folder / "runs", *runs, failed)
    write_report([folder / "runs"], folder / "report", title=EVIL)
    return folder / "report" / "report.html"


@pytest.fixture
def page(browser, page_file):
    """The page with all plots; afterwards, that the browser had nothing to complain of and asked for nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: (complaints.append(f"alert: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page_file.as_uri(), wait_until="commit")
    tab.wait_for_selector("body[data-ready=all]", timeout=30_000)
    yield tab
    tab.wait_for_timeout(100)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []
    context.close()


def cells(page, head):
    heads = [re.sub("[↕↑↓]", "", text) for text in page.locator("#lines thead th").all_inner_texts()]
    at = heads.index(head)
    return [row.split("\t")[at] for row in page.locator("#lines tbody tr").all_inner_texts()]


def chip(page, facet, value):
    group = page.locator("fieldset", has=page.locator("legend", has_text=facet))
    return group.locator(".chip").filter(has=page.get_by_text(value, exact=True))


def shown_in_figures(page):
    """Names of the recipes that the figures show, not faded."""
    return set(page.evaluate(
        "[...document.querySelectorAll('svg [id^=recipe-]')].filter(part => part.style.opacity === '')"
        ".map(part => part.querySelector('title').textContent)"
    ))  # fmt: skip


def test_filters_change_lines_counts_and_figures(page):
    everything = shown_in_figures(page)
    assert {"SLEB + rotate", "Tail + least squares"} <= everything
    assert set(cells(page, "pruner")) == {"dense", "sleb", "tail", EVIL}
    chip(page, "Pruner", "sleb").click()
    assert set(cells(page, "pruner")) == {"dense", "sleb"}
    assert chip(page, "Patch", "rotate").locator(".count").inner_text() == "2"
    assert shown_in_figures(page) == {"SLEB", "SLEB + rotate", "SLEB + least squares"}
    chip(page, "Patch", "rotate").click()
    assert set(cells(page, "patch")) == {"", "rotate"}
    assert shown_in_figures(page) == {"SLEB + rotate"}
    page.get_by_role("button", name="Clear filters").click()
    assert set(cells(page, "pruner")) == {"dense", "sleb", "tail", EVIL}
    assert shown_in_figures(page) == everything


def test_a_click_on_a_head_sorts_numbers_as_numbers_and_empty_cells_last(page):
    def values(head):
        return [float(re.sub(" .*", "", text)) if text else None for text in cells(page, head)]

    head = page.locator("#lines thead button", has_text="Prefill tokens/s")
    for reverse in (False, True):
        head.click()
        found = values("Prefill tokens/s")
        known = [value for value in found if value is not None]
        assert known == sorted(known, reverse=reverse)
        assert found == known + [None] * (len(found) - len(known))
        assert None in found
    assert page.locator("#lines th[aria-sort=descending]").count() == 1
    page.locator("#lines thead button", has_text="layers").click()
    assert [int(text.split("/")[0]) for text in cells(page, "layers")] == sorted(
        int(text.split("/")[0]) for text in cells(page, "layers")
    )


def test_columns_can_be_chosen(page):
    page.locator("#columns summary").click()
    page.locator("#columns label", has_text="removed layers").locator("input").check()
    assert "1-2" in cells(page, "removed layers")
    page.locator("#columns label").get_by_text("pruner", exact=True).click()
    assert page.locator("#lines thead", has_text="pruner").count() == 0


def test_seeds_are_shown_with_their_spread(page):
    assert "11.50 ± 0.71" in cells(page, "ppl WikiText-2")


def test_recipes_are_compared_and_filters_and_sizes_change_what(page):
    matrix = page.locator("#matrix table")
    assert "SLEB + least squares" in matrix.inner_text()
    assert "no interval" in matrix.inner_text()  # two seeds, and no windows beside these records
    rows = matrix.locator("tbody tr").count()
    chip(page, "Pruner", "tail").click()
    assert 0 < matrix.locator("tbody tr").count() < rows
    assert "SLEB" not in matrix.inner_text()
    page.locator("#matrix select[aria-label='Size of the columns']").select_option("0")
    assert matrix.locator("thead th").all_inner_texts() == ["recipe", "dense"]


def test_all_figures_of_the_report_are_on_the_page(page, page_file):
    files = {file.stem for file in (page_file.parent / "figures").glob("*.png")}
    shown = page.locator(".figures figure").evaluate_all("figures => figures.map(figure => figure.id.slice(7))")
    assert set(shown) == files
    assert len(shown) > 3


def test_details_lead_to_the_runs_command_and_configuration_by_keyboard(page):
    button = page.locator("#lines .open").nth(3)
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#details")
    assert dialog.is_visible()
    assert "linearpatch run pruner=sleb" in dialog.inner_text()
    dialog.locator("summary", has_text="Configuration").first.click()
    assert '"choices"' in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_tables_of_the_report_and_what_was_left_out_are_there(page):
    page.locator("#tables summary").get_by_text("Perplexity", exact=True).click()
    page.locator("#table-perplexity strong").first.wait_for()
    assert EVIL in page.locator("#failures").inner_text()


def test_what_stands_in_records_is_text(page):
    assert page.title() == EVIL
    assert page.locator("h1").inner_text() == EVIL
    sources = page.locator("img").evaluate_all("images => images.map(image => image.src.slice(0, 21))")
    assert set(sources) == {"data:image/png;base64"}
    page.locator("#lines tbody tr", has_text=EVIL).last.click()
    text = page.locator("#details").inner_text()
    assert EVIL in text
    for summary in page.locator("#details summary").all()[1:]:
        summary.click()
    assert page.locator("#details img").count() == 0
    page.keyboard.press("Escape")
    assert any(EVIL in text for text in page.locator("#figures figcaption").all_inner_texts())
    assert page.locator("script").count() == page.locator("body > script").count()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_it_fits_small_screens_and_the_dark(browser, page_file, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page_file.as_uri())
    tab.wait_for_selector("body[data-ready=all]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 384
    assert light == (scheme == "light")
    context.close()


def test_data_cant_end_their_element():
    text = script_json({"a": "</script><!-- <script>"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!-- <script>"}


def test_a_single_recipe_is_compared_with_dense(browser, tmp_path):
    write(tmp_path / "runs", record("sleb", "none", removed=(1, 2), dense=10.0, pruned=22.0))
    write_report([tmp_path / "runs"], tmp_path / "report")
    tab = browser.new_page()
    tab.goto((tmp_path / "report" / "report.html").as_uri())
    tab.wait_for_selector("body[data-ready=all]", timeout=30_000)
    assert tab.locator("#matrix thead th").all_inner_texts() == ["recipe", "dense"]
    tab.locator("#matrix select[aria-label='Size of the columns']").select_option("2")
    assert "one recipe of this size" in tab.locator("#matrix .hint").inner_text()
    tab.close()
