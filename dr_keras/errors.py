"""The errors that a person can mend; the scripts print them as one line, without a traceback."""


class InputError(ValueError):
    """What was given cannot be used: the message says what was received, what was expected and what to do."""


class ImageError(InputError):
    """A file or buffer that is no usable image."""


class Interrupted(InputError):
    """A person stopped the run; it was saved and can go on."""


class MissingPackage(InputError):
    """What was asked for needs a package that is not installed."""


class RunError(InputError):
    """A run folder that is missing, unfinished, damaged or of another format version."""


class NotNumbers(RunError):
    """A network's embeddings are not numbers: its training went astray, or its file is damaged."""
