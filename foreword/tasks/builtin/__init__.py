"""List the embedded tasks, written for Foreword by generators with a fixed seed. Their text is synthetic."""

from collections.abc import Callable

from foreword.tasks.builtin import intents, listings, sentiment
from foreword.tasks.task import Task

BUILTIN: dict[str, Callable[[], Task]] = {
    "sentiment": sentiment.load,
    "intents": intents.load,
    "listings": listings.load,
    "listings-values": listings.load_values,
    "listings-kinds": listings.load_kinds,
}
