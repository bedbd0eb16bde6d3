"""The pages of docs/ as a browser shows them: nothing is wider than the screen, no equation is cut, no jump hides its heading."""

from pathlib import Path

import pytest

import book

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDER = """() => {
  const width = document.documentElement.clientWidth, scrolls = e => e !== document.body &&
    (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e));
  const cut = [...document.querySelectorAll('.eq')].filter(e => e.scrollWidth > e.clientWidth + 1);
  return [document.documentElement.scrollWidth - width, [...wide, ...cut].map(e => e.outerHTML.slice(0, 90))];
}"""


@pytest.mark.parametrize("name", book.PAGES)
def test_a_page_is_as_wide_as_the_screen_and_no_equation_is_cut(browser, name):
    page = browser.new_page()
    page.goto((DOCS / f"{name}.html").as_uri())
    for width in (320, 390, 500, 1100):
        page.set_viewport_size(dict(width=width, height=800))
        assert page.evaluate(WIDER) == [0, []], width
    page.close()


def test_a_jump_to_an_equation_leaves_the_name_of_its_function_in_sight(browser):
    page = browser.new_page(viewport=dict(width=390, height=800))
    for n in range(1, 10):
        page.goto(f"{(DOCS / 'annotated.html').as_uri()}#eq{n}")
        top = page.evaluate("document.querySelector(':target').closest('.row').querySelector('h3').getBoundingClientRect().top")
        if n != 6:  # below Eq. 5
            assert 0 <= top < 800, n
    page.close()
