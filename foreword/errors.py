"""The error tree. Every message says what was given, what is allowed and what to do next."""


class ForewordError(Exception):
    """Base of every error a user can cause; the command line prints it in one line and exits with 2."""


class ConfigError(ForewordError, ValueError):
    """An option, a template, a label word or a method name that cannot be used as given."""


class DataError(ForewordError, ValueError):
    """A row, a file or a split that cannot be used as given; names the file and the row."""


class ModelError(ForewordError, RuntimeError):
    """A model or tokenizer that cannot be loaded, or cannot do what was asked of it."""


class ArtefactError(ForewordError, ValueError):
    """An artefact that is missing, truncated, tampered with or made for another model."""
