"""Which extra of the package installs each optional module, for error messages."""

# The extra of pyproject.toml that installs each optional module.
EXTRAS = {
    **dict.fromkeys(
        ("keras", "pooch", "requests", "tensorboard", "tensorboardX", "tensorflow", "tensorflow_datasets"), "train"
    ),
    **dict.fromkeys(
        ("fastapi", "h11", "multipart", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"),
        "serve",
    ),
    **dict.fromkeys(("keras_hub", "safetensors"), "hub"),
    **dict.fromkeys(("onnx", "onnxruntime", "tf2onnx"), "onnx"),
    "openvino": "fast",
    "pymilvus": "milvus",
    "ray": "ray",
    "s3fs": "s3",
    "sklearn": "groups",
    "umap": "map",
}


def how_to_install(module: str) -> str:
    """Returns the command that installs an optional module.

    Example:
        >>> how_to_install("keras")
        "pip install 'dr_keras[train]'"
        >>> how_to_install("jax")
        'pip install jax'
    """
    extra = EXTRAS.get(module.partition(".")[0])
    return f"pip install 'dr_keras[{extra}]'" if extra else f"pip install {module}"
