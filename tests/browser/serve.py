"""Uses the daemon's pages in Chromium and holds them to its API: serve.py CHROMIUM URL URL_WITH_KEY KEY SHOTS.

Ends with an AssertionError that says what is wrong; leaves screenshots in the folder SHOTS.
"""

import json
import math
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request

from playwright.sync_api import expect, sync_playwright

import watch

chromium, base, keyed, key, shots = sys.argv[1:]
shots = pathlib.Path(shots)
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
ENDED = re.compile("reached max tokens|came to its end")


def call(path, body=None, url=base):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read().decode()
    return json.loads(text) if text.startswith("{") else text


def wait_for(is_so, what, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_healthy(url):
    try:
        return call("/health", url=url)["status"] == "ok"
    except urllib.error.HTTPError:
        return False


def metric(name):
    return int(re.search(rf"^{re.escape(name)} (\d+)$", call("/metrics"), re.M)[1])


def opened(browser, path="/", url=base, **options):
    options = {"viewport": {"width": 1200, "height": 900}, **options}
    page = watch.opened(browser.new_context(**options), url + path)
    page.set_default_timeout(30_000)
    page.home = url
    return page


def closed(page, *statuses):
    """Nothing was asked of another host, and nothing was complained of but answers that were to be errors."""
    fine = [f"request: {page.home}/"]
    fine += [f"console error: Failed to load resource: the server responded with a status of {s} " for s in statuses]
    page.complaints = [c for c in page.complaints if not c.startswith(tuple(fine))]
    watch.no_complaints([page])
    assert page.title() in ("llorch-cpud", "API of llorch-cpud"), page.title()
    page.context.close()


def ask(page, prompt, tokens, temperature=0):
    page.locator("#go:enabled").wait_for()
    page.locator("#prompt").fill(prompt)
    page.locator("#max-tokens").fill(str(tokens))
    page.locator("#temperature").fill(str(temperature))
    page.locator("#go").click()


def answered(page):
    expect(page.locator("#state")).to_have_text(ENDED, timeout=60_000)
    return page.locator("#answer").text_content()


def completion(prompt, tokens, **more):
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5}
    return call("/v1/completions", {**body, "return_token_ids": True, **more})


def visible(token):
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def cells(page, rows):
    return page.locator(rows).evaluate_all("all => all.map(tr => [...tr.cells].map(c => c.textContent))")


def is_percentage(said, p):
    """As the page writes a probability: three digits."""
    if said.startswith("<"):
        return p < 1e-5
    return math.isclose(float(said.removesuffix("%")), 100 * p, rel_tol=0.006)


def check_answer(page, prompt, tokens):
    """What is streamed is what the API gives at once: the text, and each token's likely ones."""
    whole = completion(prompt, tokens)
    choice, usage = whole["choices"][0], whole["usage"]
    ask(page, prompt, tokens)
    assert answered(page) == choice["text"]
    assert page.locator("#prompt-said").text_content() == prompt
    counts = [usage[f"{what}_tokens"] for what in ("prompt", "completion", "total")]
    expect(page.locator("#usage")).to_have_text("{} + {} = {}".format(*counts))
    expect(page.locator("#first")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#speed")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))

    spans = page.locator("#answer .token")
    assert spans.count() == len(choice["token_ids"])
    spans.first.hover()
    for i, token_id in enumerate(choice["token_ids"]):
        if i == 0:
            page.locator("#answer [tabindex='0']").focus()
        else:
            page.keyboard.press("ArrowRight")
        token, logprob, top = (choice["logprobs"][k][i] for k in ("tokens", "token_logprobs", "top_logprobs"))
        words = page.locator("#token-words").inner_text()
        start, percentage = f"Token {i + 1}: {visible(token)} at ", words.split(" at ")[1].split(",")[0]
        assert words.startswith(start) and words.endswith(f", id {token_id}"), (words, token, token_id)
        assert is_percentage(percentage, math.exp(logprob)), (words, logprob)
        shade = sum(math.exp(logprob) < least for least in (0.5, 0.2, 0.05, 0.01))
        assert f"p{shade}" in spans.nth(i).get_attribute("class").split(), (i, logprob)
        likely = sorted(top.items(), key=lambda pair: -pair[1])
        rows = cells(page, "#likely tr")
        assert [row[0] for row in rows] == [visible(name) for name, _ in likely], (rows, likely)
        assert all(is_percentage(row[2], math.exp(p)) for row, (_, p) in zip(rows, likely)), (rows, likely)
    assert page.locator("#answer [tabindex='0']").count() == 1
    return choice


def check_map(page, prompt, choice, layer, head):
    """The numbers of the map, by keyboard, by mouse and in the table, are those of the API."""
    asked = call("/tokenize", {"text": prompt})
    ids = asked["ids"] + choice["token_ids"]
    labels = [visible(t) for t in asked["tokens"] + choice["logprobs"]["tokens"]]
    body = {"prompt": ids, "points": [f"h.{layer}.attn.probs"], "format": "json"}
    [tensor] = call("/v1/checkpoints", body)["tensors"]
    n = len(ids)
    assert tensor["shape"][1:] == [n, n], tensor["shape"]
    first = max(0, n - 64)

    def is_said(said, row, column):
        value = tensor["data"][(head * n + row) * n + column]
        start = f"{labels[row]} ({row}) looks at {labels[column]} ({column}): "
        return said.startswith(start) and abs(float(said.removeprefix(start)) - value) < 5.1e-5

    if not page.locator("#map").is_visible():
        page.locator("#attention > summary").click()
    at, frame = page.locator("#at"), page.locator("#map")
    page.locator("#layer").select_option(str(layer))
    page.locator("#head").select_option(str(head))
    expect(at).to_contain_text(" looks at ")
    wait_for(lambda: is_said(at.inner_text(), n - 1, first), f"the map says {at.inner_text()}")
    frame.focus()
    for pressed, row, column in [
        ("End", n - 1, n - 1), ("ArrowLeft", n - 1, n - 2), ("ArrowUp", n - 2, n - 2),
        ("ArrowRight", n - 2, n - 2), ("Home", n - 2, first), ("ArrowDown", n - 1, first),
    ]:  # fmt: skip
        page.keyboard.press(pressed)
        assert is_said(at.inner_text(), row, column), (pressed, at.inner_text())
    # The last token's row ends in the corner; above the diagonal there is nothing.
    box, tip = frame.bounding_box(), page.locator("#tip")
    frame.hover(position={"x": box["width"] - 6, "y": box["height"] - 6})
    assert is_said(tip.inner_text(), n - 1, n - 1), tip.inner_text()
    frame.hover(position={"x": box["width"] - 6, "y": 6})
    assert not tip.is_visible()

    if not page.locator("#numbers").is_visible():
        page.locator("#as-table > summary").click()
    page.locator("#numbers tbody tr").first.wait_for()
    lines = cells(page, "#numbers tbody tr")
    assert [line[0] for line in lines] == labels[first:], lines
    for i, line in enumerate(lines, first):
        start = (head * n + i) * n
        expected = tensor["data"][start + first : start + i + 1]
        assert len(line) - 1 == len(expected), line
        assert all(abs(float(a) - b) < 5.1e-5 for a, b in zip(line[1:], expected)), (i, line, expected)
    is_cut = "tokens; what they look at before" in page.locator("#rest").inner_text()
    assert is_cut == (first > 0), first


def check_stop(page):
    """Stop in mid-stream ends the work: nothing runs, and what was there is shown."""
    tokens = 240
    whole = completion("Hello.", tokens, temperature=1, seed=1)["choices"][0]
    assert whole["finish_reason"] == "length", "this answer is to be long"
    stop_early = """() => new MutationObserver((_, observer) => {
        if (document.querySelectorAll(".token").length < 3) return;
        observer.disconnect();
        document.getElementById("stop").click();
    }).observe(document.getElementById("answer"), { childList: true })"""
    outcome = 'llorch_completions_ended_total{outcome="abandoned"}'
    before = metric(outcome)
    page.locator("#seed").fill("1")
    # A browser that gets little time may see the beginning of an answer when all of it has been sent.
    for _ in range(10):
        page.evaluate(stop_early)
        ask(page, "Hello.", tokens, temperature=1)
        state = page.locator("#state")
        expect(state).to_have_text(re.compile(r"^stopped after \d+ tokens$"))
        assert 3 <= int(state.inner_text().split()[2]) < tokens, state.inner_text()
        assert whole["text"].startswith(page.locator("#answer").text_content())
        wait_for(lambda: metric("llorch_running_sequences") == 0, "what was stopped still runs")
        if metric(outcome) > before:
            break
    else:
        raise AssertionError("no request was abandoned")
    expect(page.locator("#stop")).to_be_disabled()
    page.locator("#seed").fill("")


def check_errors(page):
    too_long = "word " * 2000
    try:
        completion(too_long, 8)
        raise AssertionError("it was not too long")
    except urllib.error.HTTPError as e:
        message = json.load(e)["error"]["message"]
    ask(page, too_long, 8)
    expect(page.locator("#error-words")).to_have_text(message)
    assert not page.locator("#again").is_visible() and not page.locator("#result").is_visible()

    full = {"message": "the queue is full; try again later", "type": "rate_limit_error", "code": "queue_full"}
    page.route("**/v1/completions", lambda route: route.fulfill(status=429, json={"error": full}))
    ask(page, "Hello.", 4)
    expect(page.locator("#error-words")).to_have_text(full["message"])
    page.unroute("**/v1/completions")
    page.locator("#again").click()
    assert answered(page) == completion("Hello.", 4)["choices"][0]["text"]
    assert not page.locator("#error").is_visible()

    # A stream that fails in the middle, and one that has no end, keep what they gave.
    one = {"text": "one", "token_ids": [505], "finish_reason": None, "logprobs": logprobs("one", {"one": -0.1})}
    for last, says in [({"error": {"message": "the engine is gone"}}, "the engine is gone"), (None, "broke off")]:
        stream(page, [{"choices": [one]}] + ([last] if last else []))
        ask(page, "Hello.", 4)
        expect(page.locator("#error-words")).to_contain_text(says)
        expect(page.locator("#state")).to_have_text("failed")
        assert page.locator("#answer").text_content() == "one"
        page.unroute("**/v1/completions")


def logprobs(token, top):
    return {"tokens": [token], "token_logprobs": [top.get(token, -9.0)], "top_logprobs": [top], "text_offset": [0]}


def stream(page, events):
    """The next answers are these."""
    lines = "".join(f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events)
    page.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=lines))


def check_hostile(page):
    """What looks like HTML is text, wherever it stands."""
    bytes_token = "bytes:\\xe2\\x80"
    top = {HOSTILE: -0.5, "7": -2.0, bytes_token: -1.5, "\u202e": -3.0, "\n": -4.0}
    part = {"text": HOSTILE, "token_ids": [27], "finish_reason": None, "logprobs": logprobs(HOSTILE, top)}
    held = {"text": "", "token_ids": [447], "finish_reason": None, "logprobs": logprobs(bytes_token, top)}
    tail = {"text": "”", "token_ids": [], "finish_reason": "stop", "logprobs": None}
    stream(page, [{"choices": [part]}, {"choices": [held]}, {"choices": [tail]}, "[DONE]"])
    ask(page, HOSTILE, 2)
    assert answered(page) == HOSTILE + "”"
    assert page.locator("#said").text_content() == HOSTILE + HOSTILE + "”"
    page.locator(".token").first.hover()
    names = [row[0] for row in cells(page, "#likely tr")]
    # By probability, though "7" comes first in the object; a sign that turns text around is spelled out.
    assert names == [visible(HOSTILE), bytes_token, "7", "\\u{202e}", "↵"], names
    page.locator(".token").last.hover()
    expect(page.locator("#likely .taken")).to_have_text(bytes_token)
    page.locator("#attention > summary").click()
    expect(page.locator("#at")).to_contain_text(f"{bytes_token} (")
    page.locator("#as-table > summary").click()
    expect(page.locator("#numbers")).to_contain_text(visible(HOSTILE))
    page.unroute("**/v1/completions")
    error = {"message": HOSTILE, "type": "x", "param": None, "code": None}
    page.route("**/v1/completions", lambda route: route.fulfill(status=400, json={"error": error}))
    ask(page, "Hello.", 2)
    expect(page.locator("#error-words")).to_have_text(HOSTILE)
    assert page.locator("img, main script").count() == 0


def check_loading(browser):
    """A page that is opened too early says so, and is ready when the model is."""
    context = browser.new_context()
    left = [3]

    def health(route):
        left[0] -= 1
        route.continue_() if left[0] < 0 else route.fulfill(status=503, json={"status": "loading"})

    context.route("**/health", health)
    page = watch.opened(context, base)
    page.home = base
    expect(page.locator("#notice")).to_have_text("The model is loading …")
    expect(page.locator("#go")).to_be_disabled()
    page.locator("#go:enabled").wait_for()
    assert not page.locator("#notice").is_visible()
    closed(page, 503)


def check_key(browser):
    """The key is asked for, sent, and kept nowhere."""
    page = opened(browser, url=keyed)
    field = page.locator("#key")
    for given in ["wrong", key]:
        expect(page.locator("#error")).to_be_visible()
        expect(page.locator("#error-words")).to_contain_text("the key is missing or wrong")
        expect(field).to_be_focused()
        field.fill(given)
        page.keyboard.press("Enter")
        expect(field).to_have_value("")
    page.locator("#go:enabled").wait_for()
    assert not field.is_visible() and not page.locator("#error").is_visible()
    page.locator("#prompt").fill("Hello.")
    page.locator("#prompt").press("Control+Enter")
    assert answered(page)
    page.locator("#attention > summary").click()
    expect(page.locator("#at")).to_contain_text(" looks at ")
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert not page.context.cookies() and key not in page.content() and key not in page.url
    closed(page, 401)


def check_narrow(browser):
    phone = {"width": 390, "height": 800}
    for path, ready in [("/", "#go:enabled"), ("/docs", "section")]:
        page = opened(browser, path, viewport=phone, has_touch=True)
        page.locator(ready).first.wait_for()
        if path == "/":
            ask(page, "The daemon answers", 40)
            answered(page)
            page.locator(".token").nth(5).tap()
            expect(page.locator("#token-words")).to_contain_text("Token 6: ")
            page.locator("#attention > summary").click()
            expect(page.locator("#at")).to_contain_text(" looks at ")
        watch.shoot(page, shots / f"{'index' if path == '/' else 'docs'}-phone.png")
        page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= phone["width"], f"{path} is {width} px wide"
        closed(page)


def check_docs(browser, scheme):
    """Every endpoint with its fields and answers stands there."""
    page = opened(browser, "/docs", color_scheme=scheme)
    page.locator("section").first.wait_for()
    api = call("/openapi.json")
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            section = page.locator(f"[id='{method}{path.replace('/', '-')}']")
            expect(section.locator("h2")).to_have_text(re.compile(f"{method.upper()} *{re.escape(path)}$"))
            assert page.locator(f"#contents a[href='#{method}{path.replace('/', '-')}']").inner_text() == path
            text = section.inner_text()
            assert operation["summary"].replace("`", "") in text, text
            assert f"curl {base}{path}" in text, text
            for status, answer in operation["responses"].items():
                assert re.search(rf"{status}\s.*{re.escape(answer['description'])}", text), (path, status)
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                schema = api["components"]["schemas"][schema["$ref"].split("/")[-1]]
                fields = section.locator("table").first.locator("th code").all_text_contents()
                assert set(schema["properties"]) <= set(fields), (path, fields)
                needed = section.locator("tr:has(.need) code").all_text_contents()
                assert set(schema.get("required", [])) <= set(needed), (path, needed)
                words = [f.get("description", "") for f in schema["properties"].values()]
                assert all(" ".join(w.replace("`", "").split()) in " ".join(text.split()) for w in words), path
    assert page.locator("a[href='/']").count() == 1 and page.locator("a[href='/openapi.json']").count() == 1
    watch.shoot(page, shots / f"docs-{scheme}.png")
    closed(page)


def check_policy():
    for path in ("/", "/docs"):
        with urllib.request.urlopen(base + path, timeout=60) as response:
            policy, page = response.headers["content-security-policy"] or "", response.read().decode()
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy, (path, policy)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", page), path


with sync_playwright() as playwright:
    shots.mkdir(parents=True, exist_ok=True)
    for url in (base, keyed):
        wait_for(lambda: is_healthy(url), f"{url} is not healthy")
    check_policy()
    browser = watch.browser(playwright, chromium)
    papers = set()
    for scheme in ("light", "dark"):
        page = opened(browser, color_scheme=scheme)
        if scheme == "light":
            check_map(page, "Hello “q", check_answer(page, "Hello “q", 12), layer=0, head=0)
        prompt = "The daemon answers requests. The requests are"
        choice = check_answer(page, prompt, 24 if scheme == "light" else 80)
        check_map(page, prompt, choice, layer=2, head=1)
        page.locator("#as-table > summary").click()
        page.locator(".token").nth(3).hover()
        watch.shoot(page, shots / f"index-{scheme}.png")
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        closed(page)
        check_docs(browser, scheme)
    assert len(papers) == 2, papers
    page = opened(browser)
    check_stop(page)
    closed(page)
    page = opened(browser)
    check_errors(page)
    closed(page, 400, 429)
    page = opened(browser)
    check_hostile(page)
    closed(page, 400)
    check_loading(browser)
    check_key(browser)
    check_narrow(browser)
    browser.close()
