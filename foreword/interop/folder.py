"""Write the folder of an export as a whole, in place of nothing but an earlier export of its kind."""

from collections.abc import Mapping
from pathlib import Path

from foreword.core.files import write_folder
from foreword.core.format import Format
from foreword.errors import ArtefactError


def write_export(folder: str | Path, contents: Mapping[str, bytes], what: str, also: tuple[str, ...] = ()) -> Path:
    """Write these files and return the folder; `also` names files that an earlier export of this kind, which is `what`,
    may have had.

    Raises: ArtefactError if the folder holds anything else than such an export, or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtefactError(f"{target} is a file; name a folder that is not there yet.")
    mark = next(iter(contents))

    def refuse(place: Path) -> None:
        held = {path.name for path in place.iterdir()} if place.is_dir() else set()
        if held and (mark not in held or held - {*contents, *also}):
            raise ArtefactError(f"{target} exists and is not {what} alone; nothing was written. Name a new folder.")

    try:
        write_folder(target, contents, refuse)
    except OSError as error:
        raise ArtefactError(
            f"{target} could not be written ({error.strerror or error}); what was there is unchanged."
        ) from error
    return target


SAMPLE = "a text"


def sample_fields(form: Format) -> dict[str, str]:
    return dict.fromkeys(form.template.fields, SAMPLE)
