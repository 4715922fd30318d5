"""Pictures of the server's page: docs/page-*.png, of a real server with prompts learnt here, in minutes.

python -m docs.screenshots [--store DIR]     needs Playwright and chromium; a store that is there is used again
"""

import argparse
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.serving.browser import launched

ROOT = Path(__file__).parents[1]
MODEL = "foreword-mini-causal"
# name -> method, task, options and template
PROMPTS = {
    "reviews": ("prompt-tuning", "builtin:sentiment", ["-o", "length=10", "-o", "steps=120"], None),
    "reviews-prefix": ("prefix-tuning", "builtin:sentiment", ["-o", "length=10", "-o", "steps=120"], None),
    "reviews-words": ("manual", "builtin:sentiment", [], None),
    "intents": ("manual", "builtin:intents", [], None),
    "assistant": ("manual", "builtin:intents", [], "user : {text|shorten} assistant : {answer}"),
}
REVIEW = "The cast is wonderful and the story drags, but I would see it again."
ASK = "can you find me a train to paris for tomorrow morning?"


def make_store(store: Path) -> None:
    """Trains what is missing."""
    for name, (method, task, options, template) in PROMPTS.items():
        out = store / name
        if out.exists():
            continue
        print(f"learning {name}", file=sys.stderr)
        form = [] if template is None else ["--template", template]
        command = ["train", method, "--model", MODEL, "--data", task, "--out", str(out), *options, *form]
        subprocess.run([sys.executable, "-m", "foreword", *command], cwd=ROOT, check=True)


@contextlib.contextmanager
def serving(store: Path) -> Iterator[str]:
    """The address of a server of the store."""
    command = [sys.executable, "-m", "foreword", "serve", str(store), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.match(r"(http://\S+) serves", line):
                    yield found[1]
                    return
            raise SystemExit("The server did not start.")
        finally:
            process.terminate()
            process.stderr.read()


def opened(browser: Browser, address: str, prompts: list[str], **options: Any) -> Page:
    page = browser.new_page(**{"viewport": {"width": 1180, "height": 500}, **options})
    page.goto(address)
    for name in prompts:
        page.get_by_role("checkbox", name=re.compile(rf"^{name} ?(v\d+|no prompt)$")).check()
    return page


def run(page: Page, text: str, cards: int) -> None:
    """Twice, since the first answers load their prompts."""
    page.get_by_label("Text", exact=True).fill(text)
    for _ in range(2):
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".answer")).to_have_count(cards, timeout=60_000)
        expect(page.get_by_role("button", name="Run")).to_be_visible(timeout=60_000)


def pictures(browser: Browser, address: str, out: Path) -> None:
    labels = opened(browser, address, ["reviews", "reviews-prefix", "reviews-words"])
    run(labels, REVIEW, 3)
    labels.screenshot(path=out / "page-labels.png")

    tall = {"width": 1180, "height": 640}
    texts = opened(browser, address, ["assistant", "intents", MODEL], viewport=tall)
    texts.get_by_role("radio", name="Continue").check(force=True)
    run(texts, ASK, 3)
    texts.screenshot(path=out / "page-texts.png")

    narrow = opened(
        browser, address, ["reviews", "intents"], viewport={"width": 400, "height": 860}, color_scheme="dark"
    )  # fmt: skip
    run(narrow, REVIEW, 2)
    narrow.screenshot(path=out / "page-narrow.png", full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "page", help="where the prompts are learnt")
    given = parser.parse_args()
    make_store(given.store)
    with serving(given.store) as address, launched() as browser:
        pictures(browser, address, ROOT / "docs")


if __name__ == "__main__":
    main()
