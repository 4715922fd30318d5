"""The row that an export shows, to be checked against."""

from foreword.core.format import Format

SAMPLE = "a text"


def sample_fields(form: Format) -> dict[str, str]:
    return dict.fromkeys(form.template.fields, SAMPLE)
