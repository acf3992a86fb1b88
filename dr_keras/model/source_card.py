"""The card of a run that starts from others' weights: which network, where it comes from, and under which license."""

import re
from pathlib import Path

from dr_keras.config import HUB, NetworkConfig
from dr_keras.errors import MissingPackage

UNKNOWN = "not stated with the weights; look it up at their source before you use them"
DINOV3 = (
    "the DINOv3 License, which is not an open-source license: it restricts some uses, and whoever passes the weights "
    "on, tuned or not, must pass it on too. https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
)
APPLICATIONS = "https://keras.io/api/applications/"


def source_card(config: NetworkConfig) -> str:
    """Returns the card in Markdown.

    Args:
        config: The settings of a network with pretrained weights.
    """
    source, license = _hub(config.backbone) if config.backbone.startswith(HUB) else _application(config)
    dim = f"a linear layer to {config.embedding_dim} numbers" if config.embedding_dim else "no linear layer"
    return (
        f"# {config.backbone.removeprefix(HUB)}\n\n"
        f"This run starts from weights that others have trained.\n\n"
        f"- Network: `--backbone {config.backbone}`, {config.image_size} px, pooling `{config.pooling}`, {dim}\n"
        f"- Source: {source}\n"
        f"- License of the weights: {license}\n\n"
        "Everything in this folder that is made from the weights (the network, its exports, the vectors of an index) "
        "is under their terms.\n"
    )


def _application(config: NetworkConfig) -> tuple[str, str]:
    if config.weights == "imagenet":
        return (
            f"keras.applications.{config.backbone}, trained on ImageNet-1k ({APPLICATIONS})",
            f"see {APPLICATIONS}; the terms of ImageNet's images are for research and education",
        )
    return f"the file {Path(str(config.weights)).name}, for keras.applications.{config.backbone}", UNKNOWN


def _hub(backbone: str) -> tuple[str, str]:
    preset = backbone.removeprefix(HUB)
    stated = _front_matter(_read(preset, "README.md"))
    name = stated.get("license_name") or stated.get("license")
    license = f"`{name}`, as its card states" if name else UNKNOWN
    if "dinov3" in f"{preset} {name} {_read(preset, 'config.json')}".lower():
        license = DINOV3
    if "://" not in preset and Path(preset).is_dir():
        return f"the folder {Path(preset).name}", license
    if preset.startswith("hf://"):
        return f"https://huggingface.co/{preset.removeprefix('hf://')}", license
    if preset.startswith("kaggle://"):
        return f"https://www.kaggle.com/models/{preset.removeprefix('kaggle://')}", license
    return f"the preset `{preset}` of KerasHub (https://keras.io/keras_hub/presets/)", license


def _read(preset: str, name: str) -> str:
    """The text of a file of a preset; empty if there is none."""
    try:
        from dr_keras.model.hub import preset_file

        file = preset_file(preset, name)
        return "" if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, MissingPackage):
        return ""


def _front_matter(card: str) -> dict[str, str]:
    """The plain values of the YAML at the head of a card of Hugging Face."""
    match = re.match(r"---\n(.*?)\n---", card, flags=re.DOTALL)
    lines = match[1].splitlines() if match else []
    pairs = (re.match(r"(\w+):\s*(\S.*)", line) for line in lines)
    return {pair[1]: pair[2].strip().strip("\"'") for pair in pairs if pair}
