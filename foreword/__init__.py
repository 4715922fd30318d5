"""Foreword learns what to put in front of a frozen language model: words, vectors, or keys and values."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.core.artefact import Artefact
    from foreword.core.template import Template
    from foreword.errors import ArtefactError, ConfigError, DataError, ForewordError, ModelError
    from foreword.evaluation.bias import bias_report
    from foreword.evaluation.compare import compare
    from foreword.evaluation.retrain import retrain
    from foreword.evaluation.tasks import train_tasks
    from foreword.inference.ensemble import ensemble
    from foreword.inference.predictor import open_artefact
    from foreword.methods import METHODS
    from foreword.methods.api import train
    from foreword.models.load import load, wrap
    from foreword.tasks.read import read_task
    from foreword.tasks.task import Task

__version__ = "0.1.0"

# Loaded at first use, so that `import foreword` costs milliseconds.
_HOMES = {
    "Artefact": "foreword.core.artefact",
    "ArtefactError": "foreword.errors",
    "ConfigError": "foreword.errors",
    "DataError": "foreword.errors",
    "ForewordError": "foreword.errors",
    "METHODS": "foreword.methods",
    "ModelError": "foreword.errors",
    "Task": "foreword.tasks.task",
    "Template": "foreword.core.template",
    "bias_report": "foreword.evaluation.bias",
    "compare": "foreword.evaluation.compare",
    "ensemble": "foreword.inference.ensemble",
    "load": "foreword.models.load",
    "open_artefact": "foreword.inference.predictor",
    "read_task": "foreword.tasks.read",
    "retrain": "foreword.evaluation.retrain",
    "train": "foreword.methods.api",
    "train_tasks": "foreword.evaluation.tasks",
    "wrap": "foreword.models.load",
}

__all__ = [
    "METHODS",
    "Artefact",
    "ArtefactError",
    "ConfigError",
    "DataError",
    "ForewordError",
    "ModelError",
    "Task",
    "Template",
    "bias_report",
    "compare",
    "ensemble",
    "load",
    "open_artefact",
    "read_task",
    "retrain",
    "train",
    "train_tasks",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
