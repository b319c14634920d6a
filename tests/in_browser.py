"""A page in a headless Chromium. Needs `pip install playwright axe-playwright-python`, and Chromium."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs `pip install axe-playwright-python`")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def assert_accessible(page):
    """axe-core finds nothing that it calls serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    found = [(v["id"], node["html"]) for v in found if v["impact"] in ("serious", "critical") for node in v["nodes"]]
    assert found == []
