"""Write the paths of a recipe's rows without saying where on this machine a person keeps files, and read them back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

BESIDE = "artefact:"  # begins a path that is relative to the artefact's folder
ELSEWHERE = "elsewhere:"  # begins the last name of a path that has nothing in common with it
KEYS = ("source", "classes")
FACTS = "facts:"


def portable(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recipe as it is written: absolute paths of its rows become relative to the artefact's folder.

    If the two share no folder, a path below the home folder begins with ~, and of any other the last name is kept.
    """
    base = os.path.realpath(folder)
    return _changed(recipe, lambda path: _shortened(path, base) if os.path.isabs(path) else path)


def resolved(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recipe as it is used, with the paths that `portable` made relative."""
    base = os.path.realpath(folder)

    def whole(path: str) -> str:
        return os.path.normpath(os.path.join(base, path.removeprefix(BESIDE))) if path.startswith(BESIDE) else path

    return _changed(recipe, whole)


def _shortened(path: str, base: str) -> str:
    real, home = os.path.realpath(path), os.path.realpath(Path.home())
    if _shared(real, base):
        return BESIDE + Path(os.path.relpath(real, base)).as_posix()
    if _shared(real, home) == home:
        return "~/" + Path(os.path.relpath(real, home)).as_posix()
    return ELSEWHERE + Path(real).name


def _shared(one: str, other: str) -> str:
    """Return the folder that holds both paths; empty if that is the root of a disk, or if there is none."""
    try:
        shared = os.path.commonpath([one, other])
    except ValueError:  # two disks
        return ""
    return "" if shared == os.path.dirname(shared) else shared


def _changed(part: Any, change: Callable[[str], str]) -> Any:
    """Return a recipe in which `change` has replaced the paths of every `data`; metaprompting has one for each task."""
    if isinstance(part, list | tuple):
        return [_changed(inner, change) for inner in part]
    if not isinstance(part, dict):
        return part
    out = {key: _changed(value, change) for key, value in part.items()}
    if isinstance(data := part.get("data"), dict):
        paths = {key: _in_source(value, change) for key in KEYS if isinstance(value := data.get(key), str)}
        out["data"] = {**data, **paths}
    return out


def _in_source(text: str, change: Callable[[str], str]) -> str:
    """Change the path in a source of data; `facts:FOLDER:RELATION` names a folder too."""
    place, colon, relation = text.removeprefix(FACTS).rpartition(":")
    return f"{FACTS}{change(place)}:{relation}" if text.startswith(FACTS) and colon else change(text)
