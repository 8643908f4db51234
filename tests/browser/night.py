"""Looks at a night's index in Chromium and holds it to nightly.json: night.py CHROMIUM NIGHT SHOTS.

Ends with an AssertionError that says what is wrong; leaves screenshots in the folder SHOTS.
"""

import json
import pathlib
import sys

from playwright.sync_api import sync_playwright

import watch

chromium, folder, shots = map(pathlib.Path, sys.argv[1:])
url = (folder / "index.html").resolve().as_uri()
night = json.loads((folder / "nightly.json").read_text())
shots.mkdir(parents=True, exist_ok=True)


def check(page):
    header = page.locator("header").inner_text()
    assert night["verdict"] in header.split("\n")[0], header
    rows = page.locator("#runs tbody tr")
    assert rows.count() == len(night["runs"])
    for i, run in enumerate(night["runs"]):
        cells = rows.nth(i).locator("td").all_inner_texts()
        assert cells[0] == run["name"] and cells[1].split()[-1] == run["verdict"], cells
        if run["failures"]:
            assert cells[2] == run["failures"][0], cells
    news = page.locator("#news li").all_inner_texts()
    assert news == [line for run in night["runs"] for line in told(run)], news
    for failure in night["news"]["new_failures"]:
        assert failure in page.locator("header").inner_text(), failure


def told(run):
    """What is shown of a run that is not what it was."""
    return [] if run["changes"] and run["changes"]["nothing_changed"] else run["news"]


with sync_playwright() as playwright:
    browser = watch.browser(playwright, chromium)
    wide = {"width": 1280, "height": 800}
    pages = []
    for scheme in ("light", "dark"):
        page = watch.opened(browser.new_context(viewport=wide, color_scheme=scheme), url)
        check(page)
        watch.shoot(page, shots / f"{scheme}.png")
        pages.append(page)
    phone = {"width": 400, "height": 800}
    narrow = watch.opened(browser.new_context(viewport=phone, java_script_enabled=False), url)
    watch.shoot(narrow, shots / "phone.png")
    width = narrow.evaluate("document.documentElement.scrollWidth")
    assert width <= 400, f"at 400 px the page is {width} px wide"
    pages.append(narrow)
    # A run's link leads to its own page.
    pages[0].locator("#runs a").first.click()
    assert pages[0].url.endswith(f"runs/{night['runs'][0]['name']}/index.html"), pages[0].url
    assert pages[0].locator("#matrix").is_visible()
    watch.no_complaints(pages)
    browser.close()
