"""Show values as tables in notebooks."""

import html
from collections.abc import Sequence

LONGEST = 200  # characters of a cell


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """Return an HTML table whose cells are text: nothing in them is markup."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    title = f"<caption>{_cell(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    text = str(value)
    return html.escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")
