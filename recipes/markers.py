"""Where a recipe's tables go: between two markers of a page that people write the rest of."""

from pathlib import Path

from foreword.core.files import write_whole


def put(file: Path, recipe: str, text: str, title: str) -> None:
    """Put the text between the recipe's markers; a page without them gets them at its end, a new one `title` first."""
    part = recipe.replace("_", "-")
    start, end = f"<!-- {part}: filled by recipes/{recipe}.py -->", f"<!-- end of {part} -->"
    old = file.read_text(encoding="utf-8") if file.exists() else f"# {title}\n\n"
    if start not in old or end not in old:
        old = f"{old.rstrip()}\n\n{start}\n{end}\n"
    before, _, rest = old.partition(start)
    write_whole(file, f"{before}{start}\n{text.strip()}\n{end}{rest.partition(end)[2]}".encode())
