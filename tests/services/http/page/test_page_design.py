"""The page for every reader: light and dark, on a phone, enlarged, printed, without motion, with a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Page

SERIES = "phantom-series.nii.gz"


def nothing(page: Page) -> None:
    """Leave the page as it is without results."""


def one_slice(page: Page) -> None:
    """Open the result for one slice."""
    page.try_demo("phantom-3.jpg")
    page.wait_for_answer()
    page.wait_for_heatmap()


def one_series(page: Page) -> None:
    """Open the result for a series."""
    pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    page.try_demo(SERIES)
    page.wait_for_answer()
    page.wait_for_heatmap()


def several(page: Page) -> None:
    """Show a list, with a file that has no answer open."""
    page.try_demo("mni152-slice-2.jpg")
    page.wait_for_answer()
    page.refuses = True
    page.drop(("a-file-with-a-long-name-that-is-no-scan-at-all.txt", b"text"))
    page.wait("document.querySelector('.detail.failure')")


STATES = [nothing, one_slice, one_series, several]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("show", STATES)
def test_axe_has_no_serious_finding_and_nothing_is_wider_than_a_phone(
    page: Page, show: Callable[[Page], None], dark: bool
) -> None:
    page.open(dark=dark)
    show(page)
    assert page.serious() == []
    page.settings(360, 740, dark=dark)
    assert page.overflow() == 0
    assert page.serious() == []


@pytest.mark.parametrize("show", STATES)
def test_text_can_be_twice_as_large(page: Page, show: Callable[[Page], None]) -> None:
    page.open()
    show(page)
    page.driver.execute_script("document.documentElement.style.fontSize = '200%'")
    assert page.overflow() == 0
    cut = """[...document.querySelectorAll('button, h1, h2, p, dd, dt, label')].filter((each) =>
        each.checkVisibility() && !each.closest('.unseen') && each.scrollWidth > each.clientWidth + 1
        && getComputedStyle(each).display !== 'inline').map((each) => each.outerHTML.slice(0, 120))"""
    assert page.run(cut) == []


def lightness(page: Page) -> float:
    """Return the mean of the channels of the background, 0 to 255."""
    color = page.run("getComputedStyle(document.body).backgroundColor")
    channels = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return sum(channels) / 3


def test_colors_follow_the_system_and_the_choice_of_the_reader(page: Page) -> None:
    page.open(dark=False)
    assert lightness(page) > 230
    page.settings(dark=True)
    assert lightness(page) < 30
    page.driver.execute_script("document.querySelector('[name=theme][value=light]').click()")
    assert lightness(page) > 230
    page.settings(dark=False)
    page.driver.execute_script("document.querySelector('[name=theme][value=dark]').click()")
    assert lightness(page) < 30


def test_without_motion_nothing_moves(page: Page) -> None:
    script = """(() => {
        const screen = document.body.appendChild(document.createElement('div'));
        screen.className = 'screen busy';
        const name = getComputedStyle(screen, '::after').animationName;
        screen.remove();
        return name;
    })()"""
    page.open()
    assert page.run(script) == "slide"
    page.settings(still=True)
    assert page.run(script) == "none"


def test_print_has_the_answer_and_the_notice_and_no_controls(page: Page) -> None:
    page.open(dark=True)
    one_series(page)
    page.driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    page.settings(dark=True, media="print")
    assert lightness(page) > 230 or page.run("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
    for selector in ("#intake", ".theme", ".tools", ".facts .buttons", ".stepper input"):
        assert not page.find(selector).is_displayed(), selector
    for selector in ("#detail-title", ".answer .notice", ".top .notice", ".screen img", ".facts dl", ".series table"):
        assert page.find(selector).is_displayed(), selector
    printed = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(printed["data"]) > 10_000


def test_page_follows_its_own_security_policy(page: Page, tmp_path: Path) -> None:
    """The policy allows neither inline code nor other servers. The browser would log each violation as an error."""
    page.open()
    policy = page.driver.execute_async_script(
        "fetch('./').then((answer) => arguments[0](answer.headers.get('content-security-policy')))"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    one_slice(page)
    page.driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script)"
    )
    assert page.run("window.ran") is None
    page.read_logs()
    assert any("Content Security Policy" in error for error in page.errors)  # of the script above
    page.errors.clear()
