"""Every error that Lapilli raises on purpose; each message says what, where and what to do."""


class LapilliError(Exception):
    """The work could not be done; the message is one line fit for a person."""


class ConfigError(LapilliError):
    """A recipe, an option or an architecture does not make sense."""


class DataError(LapilliError):
    """A record or a data set is wrong."""


class ImageError(LapilliError):
    """A picture is missing, damaged or too large."""


class ImageTooLargeError(ImageError):
    """A picture has more bytes or pixels than the limit."""


class PromptError(LapilliError):
    """A conversation cannot be turned into model inputs."""


class TooLongError(PromptError):
    """A conversation takes more tokens than there is room for."""


class CheckpointError(LapilliError):
    """A model folder or checkpoint is incomplete or damaged."""


class EngineError(LapilliError):
    """A request cannot be answered."""


class BusyError(EngineError):
    """Too many requests wait already."""


class FormatError(EngineError):
    """The form that an answer must have is broken, or cannot be followed."""
