"""A browser for the tests of the page."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    """Chromium by playwright; tests that need it are skipped where either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    file = next((path for name in names if (path := shutil.which(name))), None)
    if file is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=file, args=["--no-sandbox"], timeout=120_000)
        yield opened
        opened.close()
