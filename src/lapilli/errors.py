"""Every error that Lapilli raises on purpose; each message says what, where and what to do."""


class LapilliError(Exception):
    """The work could not be done; the message is one line fit for a person."""


class ConfigError(LapilliError):
    """A recipe, an option or an architecture does not make sense."""


class DataError(LapilliError):
    """A record or a data set is wrong."""


class ImageError(LapilliError):
    """A picture is missing, damaged or too large."""


class PromptError(LapilliError):
    """A conversation cannot be turned into model inputs."""


class CheckpointError(LapilliError):
    """A model folder or checkpoint is incomplete or damaged."""


class EngineError(LapilliError):
    """A request cannot be answered."""
