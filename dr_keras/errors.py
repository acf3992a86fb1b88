"""The errors that a person can fix; the commands print them as one line, without a traceback."""

# The extra of pyproject.toml that installs each optional module.
EXTRAS = {
    **dict.fromkeys(
        ("keras", "pooch", "requests", "tensorboard", "tensorboardX", "tensorflow", "tensorflow_datasets"), "train"
    ),
    **dict.fromkeys(
        ("fastapi", "h11", "multipart", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"),
        "serve",
    ),
    "openvino": "fast",
    "sklearn": "demo",
    "umap": "map",
}


def how_to_install(module: str) -> str:
    """The command that installs an optional module.

    Example:
        >>> how_to_install("keras")
        "pip install 'dr_keras[train]'"
        >>> how_to_install("jax")
        'pip install jax'
    """
    extra = EXTRAS.get(module.partition(".")[0])
    return f"pip install 'dr_keras[{extra}]'" if extra else f"pip install {module}"


class InputError(ValueError):
    """What was given cannot be used: the message says what was received, what was expected and what to do."""


class ImageError(InputError):
    """A file or buffer is not a usable image."""


class Interrupted(InputError):
    """A person stopped the run; it was saved and can go on."""


class MissingPackage(InputError):
    """What was asked for needs a package that is not installed; the message says how to install it."""


class RunError(InputError):
    """A run folder is missing, unfinished, damaged or of another format version."""


class NotNumbers(RunError):
    """A network's embeddings are not numbers: its training went astray, or its file is damaged."""
