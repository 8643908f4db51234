"""Looks at a report in Chromium and holds it to result.json: look.py CHROMIUM PAGE RESULT SHOTS.

Ends with an AssertionError that says what is wrong; leaves screenshots in the folder SHOTS.
"""

import json
import pathlib
import sys

from playwright.sync_api import sync_playwright

import watch

chromium, page_path, result_path, shots = map(pathlib.Path, sys.argv[1:])
url = page_path.resolve().as_uri()
result = json.loads(result_path.read_text())
subject = result["implementations"][0]["name"]
shots.mkdir(parents=True, exist_ok=True)


def shown(value):
    """As reports write an error: two digits."""
    if value is None:
        return "not finite"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def largest(values):
    values = list(values)
    return None if None in values else max(values)


def rows(**fields):
    return [r for r in result["rows"] if all(r[k] == v for k, v in fields.items())]


def check_figures(page):
    """Every figure of the chart, the matrix and the tables is that of result.json."""
    data = json.loads(page.locator("#data").text_content())
    points = [p["p"] for p in data["points"]]
    assert len(points) > 50, points
    for series in data["series"]:
        for i, point in enumerate(points):
            mine = rows(kind="oracle", a=series["name"], point=point)
            total = largest(r["max_abs"] for r in mine) if mine else None
            assert series["total"][i] == total, (point, series["total"][i], total)
            local = [r["local"]["max_abs"] for r in mine if r.get("local")]
            expected = largest(local) if local else None
            assert series["local"][i] == expected, (point, series["local"][i], expected)
    pairs = page.eval_on_selector_all(
        "#matrix thead th", "all => all.map(th => th.innerHTML.split('<br>'))"
    )
    pairs = [p for p in pairs if len(p) == 2 and p[1] != "by itself"]
    lines = page.eval_on_selector_all(
        "#matrix tbody tr",
        "all => all.map(tr => [...tr.children].map(td => td.textContent.trim()))",
    )
    assert len(lines) == 13, lines
    compared = 0
    for line in lines:
        cells = line[-len(pairs) :]
        for (a, b), cell in zip(pairs, cells):
            found = rows(kind="pair", a=a, b=b, checkpoint=int(line[0]))
            figures = [r["max_abs"] for r in found if "max_abs" in r]
            if figures:
                assert cell.split()[-1] == shown(largest(figures)), (line, a, b, cell)
                compared += 1
    assert compared > 10, compared
    tables = page.eval_on_selector_all(
        "#points table:not(.stages) tbody tr",
        "all => all.map(tr => [...tr.children].map(td => td.textContent.trim()))",
    )
    for line in tables:
        point = line[0].split()[0]
        for (a, b), cell in zip(pairs, line[1:]):
            found = [r for r in rows(kind="pair", a=a, b=b, point=point) if "max_abs" in r]
            if found:
                expected = shown(largest(r["max_abs"] for r in found))
                assert cell.split()[-1] == expected, (point, a, b, cell, expected)


def check_verdict(page):
    said = page.locator(".top").inner_text()
    assert said.startswith(("✓", "✗", "!", "?")) and result["verdict"] in said, said
    for u in result["unchecked"]:
        assert u["what"] in page.locator("#run").inner_text(), u
    if result["verdict"] != "FAIL":
        assert page.locator("#failed").count() == 0
        return
    first = result["odd"][0]
    link = page.locator("#first")
    assert link.inner_text() == first["point"]
    # Seen at once, and one click away.
    assert link.bounding_box()["y"] < 200
    link.click()
    section = page.locator(f"[id='p-{first['point']}']")
    box = section.bounding_box()
    assert box and box["y"] < page.viewport_size["height"], box
    assert page.locator("summary .badge.fail").first.inner_text().endswith("FIRST")
    check_heat(page, section, first)


def check_heat(page, section, first):
    """The largest difference of the picture is the largest of the row that it shows."""
    frame = section.locator(".frame")
    frame.scroll_into_view_if_needed()
    other = section.locator("figcaption").inner_text().split("|")[1].split(" − ")[1]
    row = next(
        r
        for r in rows(kind="pair", point=first["point"], case=first["case"], step=first["step"])
        if {r["a"], r["b"]} == {first["name"], other}
    )
    frame.focus()
    page.keyboard.press("Home")
    said = section.locator(".at").inner_text()
    assert said.endswith(": " + shown(row["max_abs"])), (said, row["max_abs"])
    # The same element leads the table beside it.
    worst = section.locator(".split tbody tr").first.inner_text().split("\t")
    assert said.startswith(worst[0] + ":") and worst[3] == shown(row["max_abs"]), (said, worst)
    channel = int(worst[0].split("channel ")[1])
    page.keyboard.press("ArrowLeft")
    moved = section.locator(".at").inner_text()
    assert f"channel {channel - 1}:" in moved, moved
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert section.locator(".at").inner_text().startswith("head 0, token 0"), "hover"


def check_chart(page):
    data = json.loads(page.locator("#data").text_content())
    box = page.locator("#chart")
    box.scroll_into_view_if_needed()
    readout = page.locator("#readout")

    def expect(i):
        said = readout.inner_text()
        assert data["points"][i]["p"] in said, (i, said)
        for series in data["series"]:
            assert shown(series["total"][i]) in said, (series["name"], said)

    box.focus()
    page.keyboard.press("Home")
    expect(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(2)
    page.keyboard.press("PageDown")
    assert data["points"][2]["p"].startswith("h.0."), "the third point is in layer 0"
    assert "h.1." in readout.inner_text(), readout.inner_text()
    page.keyboard.press("End")
    expect(len(data["points"]) - 1)
    svg = page.locator("#chart svg")
    frame = svg.bounding_box()
    left, step = (float(svg.get_attribute(f"data-{name}")) for name in ("left", "step"))
    scale = frame["width"] / svg.evaluate("e => e.viewBox.baseVal.width")
    page.mouse.move(frame["x"] + (left + 20.5 * step) * scale, frame["y"] + 100)
    expect(20)


def check_clicks(page):
    section = page.locator("[id='c-5']")
    assert not section.is_visible()
    page.locator("#matrix tr[data-open='c-5'] td").first.click()
    assert section.is_visible(), "a click in the matrix opens the points"
    page.locator("#copy").click()
    page.locator("#copy", has_text="Copied").wait_for()
    assert page.locator("#command").inner_text().startswith("llorch-diff run "), "command"


def check_narrow(page):
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 400, f"at 400 px the page is {width} px wide"


with sync_playwright() as playwright:
    browser = watch.browser(playwright, chromium)
    wide, phone = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
    pages = []

    light = watch.opened(browser.new_context(viewport=wide, color_scheme="light"), url)
    watch.shoot(light, shots / "light.png")
    check_figures(light)
    check_verdict(light)
    check_chart(light)
    check_clicks(light)
    pages.append(light)

    dark = watch.opened(browser.new_context(viewport=wide, color_scheme="dark"), url)
    watch.shoot(dark, shots / "dark.png")
    paper = [p.evaluate("getComputedStyle(document.body).backgroundColor") for p in (light, dark)]
    assert paper[0] != paper[1], paper
    pages.append(dark)

    narrow = watch.opened(browser.new_context(viewport=phone), url)
    watch.shoot(narrow, shots / "phone.png")
    check_narrow(narrow)
    pages.append(narrow)

    printed = watch.opened(browser.new_context(viewport=wide), url)
    printed.pdf(path=shots / "print.pdf", format="A4", print_background=True)
    pages.append(printed)

    # Without JavaScript the tables, the chart and the links into folded parts are still there.
    bare = watch.opened(browser.new_context(viewport=wide, java_script_enabled=False), url)
    assert bare.locator("#matrix tbody tr").count() == 13
    assert bare.locator("#chart svg path").count() > 10
    assert not bare.locator("#copy").is_visible() and not bare.locator("#readout").is_visible()
    bare.locator("#matrix a[href='#c-4']").click()
    assert bare.locator("[id='c-4'] table").first.is_visible(), "a link opens what is folded"
    watch.shoot(bare, shots / "no-script.png")
    pages.append(bare)

    watch.no_complaints(pages)
    browser.close()
