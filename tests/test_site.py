"""The site, built and opened from the disk in a headless Chromium. Needs requirements-docs.txt."""

import re
import time
from pathlib import Path

import pytest
from in_browser import assert_accessible, in_a_browser

from docs.scripts import site as builder

pytest.importorskip("sphinx", reason="needs requirements-docs.txt")
pytest.importorskip("furo", reason="needs requirements-docs.txt")
pytest.importorskip("myst_parser", reason="needs requirements-docs.txt")
pytest.importorskip("latex2mathml", reason="needs requirements-docs.txt")

CODE = Path(builder.PACKAGE) / "cells"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. Sphinx's warnings are errors, so no link leads nowhere."""
    out = tmp_path_factory.mktemp("docs") / "site"
    builder.build(out)
    return out


@pytest.mark.parametrize("name", builder.LESSONS)
def test_the_code_beside_the_equations_is_the_whole_file_in_its_own_order(name):
    code = (CODE / f"{name}.py").read_text()
    pieces = builder.segments(code)
    assert "".join("".join(lines.split()) for _, lines in pieces) == "".join(code.split())
    tags = [tag for tags, _ in pieces for tag in tags]
    assert tags == re.findall(builder.TAG, code)
    for _, lines in [piece for piece in pieces if piece[0]]:  # a comment stands with the line that it explains
        assert any(line.strip() and not line.lstrip().startswith("#") for line in lines.splitlines())


def test_no_page_refers_to_the_internet_except_by_links_to_read(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = re.findall(
            r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?:https?:)?//[^"']+""", page.read_text()
        )
        assert found == [], page.name


def test_every_page_with_its_files_is_below_a_megabyte(site):
    for page in site.glob("*.html"):
        names = set(re.findall(r'(?:src|href)="((?:_static|_images)/[^"?#]+)', page.read_text()))
        size = page.stat().st_size + sum((site / name).stat().st_size for name in names if (site / name).exists())
        assert size < 1e6, (page.name, size)


def test_every_tag_leads_from_the_lesson_to_the_code_and_back(site):
    for name, lesson in builder.LESSONS.items():
        for tag in re.findall(builder.TAG, (CODE / f"{name}.py").read_text()):
            assert f'href="code_{name}.html#{tag}"' in (site / f"{lesson}.html").read_text(), tag
            code = (site / f"code_{name}.html").read_text()
            assert f'id="{tag}"' in code and f'href="{lesson}.html#{tag}"' in code, tag


def opened(context, site, name):
    page = context.new_page()
    start = time.monotonic()
    page.goto((site / name).as_uri())
    page.wait_for_load_state("load")
    return page, time.monotonic() - start


@in_a_browser
def test_hover_focus_or_tap_lights_up_the_equation_and_its_line(browser, site):
    with browser.new_context() as context:
        page, _ = opened(context, site, "code_lstm.html")
        lit = page.locator(".lit")
        assert lit.count() == 0
        page.locator("#LSTM-5").hover()
        assert lit.count() == 2
        assert "c_t = f * c_{t-1} + i * g" in page.locator(".lines .lit").inner_text()
        comment = page.locator('.lines [data-tag="LSTM-12"]')
        comment.focus()
        assert page.locator(".words .lit").get_attribute("id") == "LSTM-12"
        page.locator('.lines [data-tag="LSTM-7"]').click()
        assert page.locator(".words .lit").get_attribute("id") == "LSTM-7"


@in_a_browser
def test_the_search_works_from_the_disk(browser, site):
    with browser.new_context(offline=True) as context:
        page, _ = opened(context, site, "search.html")
        page.goto((site / "search.html").as_uri() + "?q=peepholes")
        page.locator("#search-results li a").first.wait_for()
        assert "lstm.html" in page.locator("#search-results li a").first.get_attribute("href")


@in_a_browser
def test_a_folded_answer_opens(browser, site):
    with browser.new_context() as context:
        page, _ = opened(context, site, "rnn.html")
        answer = page.locator("details").first
        assert not answer.locator("p").first.is_visible()
        answer.locator("summary").click()
        assert answer.locator("p").first.is_visible()


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_pages_are_accessible_fit_and_load_at_once(browser, site, width, scheme):
    phone, seconds = width < 500, []
    size = {"width": width, "height": 844}
    with browser.new_context(viewport=size, color_scheme=scheme, is_mobile=phone, has_touch=phone) as context:
        for name in ("index", "rnn", "lstm", "attention", "code_lstm", "gradients", "notation", "tour", "readme"):
            page, took = opened(context, site, f"{name}.html")
            seconds.append(took)
            assert_accessible(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            page.close()
    assert min(seconds) < 1  # the fastest, because the machine may be busy


@in_a_browser
def test_formulas_are_drawn_as_mathml(browser, site):
    with browser.new_context() as context:
        page, _ = opened(context, site, "lstm.html")
        box = page.locator("#LSTM-5 math").bounding_box()
        assert box["width"] > 50 and box["height"] > 10
        assert "$" not in page.locator("article p").all_inner_texts()[0]
        assert page.locator("article").inner_text().count("\\odot") == 0
