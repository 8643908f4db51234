"""A browser whose pages complain: of console messages, errors, and requests to anywhere."""

from playwright.sync_api import Error


def browser(playwright, chromium):
    # Root in a container has no sandbox; the machine may have no GPU.
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    return playwright.chromium.launch(executable_path=str(chromium), args=flags)


def opened(context, url):
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda e: page.complaints.append(f"error: {e}"))

    def request(r):
        if not r.url.startswith(("file:", "data:")):
            page.complaints.append(f"request: {r.url}")

    page.on("request", request)
    page.goto(url)
    return page


def shoot(page, path):
    """For people: a browser that can't hold the whole page in one picture shows its top."""
    try:
        page.screenshot(path=path, full_page=True)
    except Error:
        page.screenshot(path=path)


def no_complaints(pages):
    for page in pages:
        assert not page.complaints, page.complaints
