"""The errors that a user can fix, in one hierarchy.

`dr_keras.cli.errors` prints them as one line, without a traceback, and exits with status 2 (130 for `Interrupted`).
Every other exception is treated as a bug, with exit status 70.

    InputError
        ImageError
        Interrupted
        MissingPackage
        RunError
            NotNumbers
            Unavailable
"""


class InputError(ValueError):
    """The input cannot be used: a setting, a file, a data set, or the environment.

    Raised by every part of the package. The message says what was received, what was expected, and what to do. Exit
    status 2.
    """


class ImageError(InputError):
    """A file or a buffer is not a usable image.

    Raised by `dr_keras.data.images`. Where many images are read, each failure is caught and reported with the name of
    its file; an error for a single image, such as a query, ends the command. Exit status 2.
    """


class Interrupted(InputError):
    """The user stopped a training run, which was saved and can be resumed.

    Raised by `dr_keras.training`. Exit status 130, as for Ctrl-C.
    """


class MissingPackage(InputError):
    """A package that the requested feature needs is not installed.

    Raised where optional packages are imported. The message gives the command to install it. Exit status 2.
    """


class RunError(InputError):
    """A run folder is missing, unfinished, damaged, or of another format version.

    Raised by `dr_keras.runs` and by the modules that open a run. Exit status 2.
    """


class NotNumbers(RunError):
    """The embeddings of a run are not finite numbers: its training diverged, or its file is damaged.

    Raised by `dr_keras.embedders`; the run is at fault, not the request. Exit status 2.
    """


class Unavailable(RunError):
    """The server that holds an index cannot be reached at the moment, or does not answer in time.

    Raised by `dr_keras.index.milvus`. `serve.py` answers with status 503 meanwhile. Exit status 2.
    """
