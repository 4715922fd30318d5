"""Configure the documentation site (Sphinx): `make docs`.

Pages that live elsewhere in the repository are copied to `docs/_included` before the build, so that every link works in
the repository and on the site.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import foreword

ROOT = Path(__file__).parents[1]
INCLUDED = Path(__file__).parent / "_included"
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "foreword/data/foreword-mini/README.md": "foreword-mini.md",
    "foreword/data/foreword-mini/SOURCES.md": "foreword-mini-sources.md",
    **{f"benchmarks/{path.name}": f"benchmark-{path.name.lower()}" for path in (ROOT / "benchmarks").glob("*.md")},
}

project, author, release = "Foreword", "the authors of Foreword", foreword.__version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_site"]
html_theme = "furo"
html_title = "Foreword"
html_last_updated_fmt = None
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # copied pages; blocks that hold a template


def copy_pages(*_: Any) -> None:
    """Copy the pages that live elsewhere."""
    shutil.rmtree(INCLUDED, ignore_errors=True)
    INCLUDED.mkdir()
    for source, name in ELSEWHERE.items():
        shutil.copy(ROOT / source, INCLUDED / name)


def mend_links(_: Any, page: str, source: list[str]) -> None:
    """Point links to pages that live elsewhere at their copies, and links of the copies at what they mean."""
    folder = Path(__file__).parent
    place = folder / f"{page}.md"
    origin = next((ROOT / path for path, name in ELSEWHERE.items() if INCLUDED / name == place), place)

    def mended(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (origin.parent / target).resolve()
        relative = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if relative in ELSEWHERE:
            path = INCLUDED / ELSEWHERE[relative]
        depth = "../" * (len(place.relative_to(folder).parts) - 1)
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path("..") / path.relative_to(ROOT)
        return f"{match[1]}({depth}{inside.as_posix()}{hash_}{anchor})" if path.is_file() else match[1]

    source[0] = re.sub(r"(\[[^\[\]]*\])\(([^()\s]+)\)", mended, source[0])


def setup(app: Any) -> None:
    """Hook the copies in."""
    app.connect("config-inited", copy_pages)
    app.connect("source-read", mend_links)
