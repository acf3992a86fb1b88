"""The settings of the embedding network and of the losses."""

from dataclasses import dataclass

from dr_keras.config.seed import seed_option
from dr_keras.errors import InputError
from dr_keras.heads import GENERAL_DIM
from dr_keras.options import check_at_least, check_choice, check_positive, check_share, option

RESNETS = ("resnet10", "resnet18", "resnet34")
BACKBONES = (*RESNETS, "alexnet")
HUB = "hub:"  # before a preset of KerasHub
POOLINGS = ("auto", "cls", "mean", "projection")
DISTANCES = ("euclidean", "squared")
MININGS = ("none", "semi-hard", "hard", "distance-weighted")

# Settings that must match for the weights of another network to fit; for ResNets, see `training.run.start_from`.
ARCHITECTURE = ("image_size", "backbone", "pooling", "width", "stem_stride", "multiscale", "embedding_dim")


@dataclass(frozen=True)
class NetworkConfig:
    """The embedding network and its initial weights."""

    image_size: int = option(
        None,
        "images are resized to this many pixels per side (default: 224 for pretrained networks, else 64)",
        metavar="PIXELS",
    )
    backbone: str = option(
        "resnet18",
        f"network of the ConvNet path: {', '.join(BACKBONES)}; any in keras.applications, such as EfficientNetB0; or "
        "hub:PRESET of KerasHub: a built-in preset such as hub:dinov2_small, hf://..., kaggle://... or a folder",
        metavar="NAME",
    )
    weights: str | None = option(
        None,
        "initial weights of a keras.applications network: none (random), imagenet (downloaded), or a weights file",
        metavar="none|imagenet|FILE",
    )
    pooling: str = option(
        "auto",
        "features of a KerasHub network: its class token, the mean over positions, the projection into the space that "
        "images share with texts, or what it was made for",
        choices=POOLINGS,
    )
    initial_weights: str | None = option(
        None,
        "run or released model, such as tiny-imagenet-64, to start training from; also sets the network and image "
        "size; a ResNet may have a larger --width or another --stem-stride",
        metavar="NAME",
    )
    width: int = option(32, "channels of a ResNet's first stage; no effect on alexnet", metavar="CHANNELS")
    stem_stride: int | None = option(
        None,
        "stride of a ResNet's first convolution; 1 keeps all the detail of a small image but takes about four times "
        "as long as 2 (default: 1 below 48 px, else 2)",
        metavar="1|2",
    )
    multiscale: bool = option(
        None,
        "add the paper's two low-resolution paths to the ConvNet path (default: only without pretrained weights)",
    )
    embedding_dim: int = option(
        None,
        "length of an embedding (4096 in the paper); 0 keeps the network's own features, without the linear layer "
        "(default: 0 for pretrained networks, else 256)",
        metavar="D",
    )
    general_dim: int = option(
        GENERAL_DIM, "length of a vector of the general head, for classes that are not trained on", metavar="D"
    )
    dropout: float = option(0.4, "dropout rate in alexnet's fully connected layers", metavar="RATE")
    seed: int = seed_option()

    def __post_init__(self) -> None:
        if self.weights in ("none", ""):
            object.__setattr__(self, "weights", None)
        pretrained = self.pretrained
        by_default = {"image_size": 224 if pretrained else 64, "embedding_dim": 0 if pretrained else 256}
        for name, value in (by_default | {"multiscale": not pretrained}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice(self, pooling=POOLINGS)
        check_at_least(self, image_size=16, width=1, embedding_dim=0, general_dim=1, seed=0)
        check_share(self, "dropout")
        if self.stem_stride not in (None, 1, 2):
            raise InputError(f"--stem-stride is {self.stem_stride}; it must be 1 or 2")
        if self.pooling != "auto" and not self.backbone.startswith(HUB):
            raise InputError(f"--pooling {self.pooling} is for networks of KerasHub, --backbone {HUB}PRESET")
        if self.weights is not None and self.backbone in BACKBONES:
            raise InputError(f"--weights is {self.weights!r}; only networks of keras.applications have weights to load")
        if self.weights is not None and self.backbone.startswith(HUB):
            raise InputError(f"--weights is {self.weights!r}; networks of KerasHub have their own")
        if self.weights is not None and self.initial_weights is not None:
            raise InputError("--weights and --initial-weights both set the initial weights; give one of them")

    @property
    def pretrained(self) -> bool:
        """Whether the ConvNet path starts from weights that others trained."""
        return self.weights not in (None, "none", "") or self.backbone.startswith(HUB)


@dataclass(frozen=True)
class RankingConfig:
    """The losses: the triplets with their mining and proxies, and the classifier."""

    margin: float = option(1.0, "margin g of the triplet loss", metavar="G")
    distance: str = option(
        "squared", "distance inside the triplet loss (the search is always Euclidean)", choices=DISTANCES
    )
    mining: str = option(
        None,
        "how negatives are chosen: none keeps the ones that were drawn, the others choose among all embeddings of the "
        "batch; hard also chooses the positives (default: semi-hard; none with --triplets)",
        choices=MININGS,
    )
    images_per_class: int = option(1, "queries per class that are placed in the same batch, for mining", metavar="K")
    proxies: int = option(
        0, "learned vectors per class, used as additional positives and negatives in the triplet stage", metavar="N"
    )
    label_smoothing: float = option(0.1, "label smoothing of the classifier", metavar="SHARE")
    scale: float = option(10.0, "the classifier's logits are the cosines times this", metavar="S")
    classifier_weight: float = option(
        None, "weight of the classifier's loss in the triplet stage (default: 1; 0 with --triplets)", metavar="W"
    )
    seed: int = seed_option()

    def __post_init__(self) -> None:
        for name, value in (("mining", "semi-hard"), ("classifier_weight", 1.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice(self, distance=DISTANCES, mining=MININGS)
        check_at_least(self, images_per_class=1, proxies=0, classifier_weight=0, seed=0)
        check_positive(self, "margin", "scale")
        check_share(self, "label_smoothing")
