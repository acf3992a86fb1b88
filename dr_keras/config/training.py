"""The settings of the training itself: the optimizer, the schedule, the run and its machines."""

from dataclasses import dataclass

from dr_keras.errors import InputError
from dr_keras.options import check_at_least, check_choice, check_positive, check_share, flag, option

RATES = {"muon": 6e-3, "adamw": 2e-3, "sgd": 0.18}  # at 192 images per step; the rate of sgd has not been tuned
OPTIMIZERS = tuple(RATES)
TUNING = 0.1  # the rate of weights that others have trained, as a share of the learning rate
PRECISIONS = ("auto", "float32", "mixed_bfloat16")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, and the precision of the computation."""

    optimizer: str = option(
        "muon",
        "muon, adamw, or sgd with Nesterov momentum 0.9",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(
        None,
        "peak learning rate, reached after the warm-up and followed by a cosine decay "
        f"(default: {', '.join(f'{rate:g} for {name}' for name, rate in RATES.items())})",
        metavar="RATE",
    )
    backbone_rate: float = option(
        None,
        "learning rate of the ConvNet path, as a share of --learning-rate "
        f"(default: {TUNING:g} for pretrained networks, else 1)",
        metavar="SHARE",
    )
    freeze: str = option(
        "none",
        "blocks of the ConvNet path that keep their initial weights: none, all, or the first N, which are blocks of a "
        "transformer or stages of a ConvNet, between which the resolution falls",
        metavar="none|all|N",
    )
    layer_decay: float = option(
        1.0, "learning rate of each block of the ConvNet path, as a share of that of the next block", metavar="SHARE"
    )
    lora: int = option(
        0,
        "rank of the matrices that are trained in place of the ConvNet path's own kernels (LoRA); 0: off",
        metavar="RANK",
    )
    warmup: float = option(0.05, "share of all steps in which the learning rate warms up", metavar="SHARE")
    weight_decay: float = option(0.05, "decoupled weight decay", metavar="RATE")
    weight_average: float = option(
        0.0,
        "per-step decay of the running average of the weights, which replaces the last weights; 0: off",
        metavar="DECAY",
    )
    precision: str = option(
        "auto", "auto: mixed_bfloat16 where the GPU or CPU supports it in hardware, else float32", choices=PRECISIONS
    )
    deterministic: bool = option(False, "make float32 training on a CPU reproducible to the last digit; slower")

    def __post_init__(self) -> None:
        check_choice(self, optimizer=OPTIMIZERS, precision=PRECISIONS)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", RATES[self.optimizer])
        if self.backbone_rate is None:
            object.__setattr__(self, "backbone_rate", 1.0)
        check_positive(self, "learning_rate")
        check_share(self, "warmup", "weight_average")
        check_at_least(self, lora=0)
        object.__setattr__(self, "freeze", str(self.freeze))
        if self.freeze not in ("none", "all") and not (self.freeze.isascii() and self.freeze.isdecimal()):
            raise InputError(f"--freeze is {self.freeze!r}; it must be none, all, or a number of blocks")
        for name in ("backbone_rate", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{flag(name)} is {getattr(self, name)}; it must be above 0 and at most 1")
        if self.lora and self.weight_average:
            raise InputError("--lora cannot be combined with --weight-average")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay is {self.weight_decay}; it must be 0 or more")


@dataclass(frozen=True)
class ScheduleConfig:
    """The length, stages, and image sizes of training, and what happens in between."""

    epochs: int = option(
        30,
        "total epochs of both stages; in each, every training image is seen once (softmax) or is the query once "
        "(triplets); 0 takes the network as it is, and needs no --data",
        metavar="N",
    )
    pretrain_epochs: int | None = option(
        None,
        "how many of the epochs belong to the softmax stage, which trains a classifier before the triplet stage "
        "(default: 4 of 5)",
        metavar="N",
    )
    batch_size: int = option(64, "triplets per step", metavar="B")
    steps_per_epoch: int | None = option(None, "steps per epoch, to shorten epochs", metavar="N")
    progressive: str = option(
        "auto",
        "smaller image sizes to train at first, with their shares of the steps, such as 32:0.4,48:0.3; none; or auto: "
        "for the built-in ResNets, these two at 64 px, and proportional ones above",
        metavar="SIZE:SHARE,...",
    )
    eval_every: int = option(1, "epochs between rankings of the monitor images; 0: rank only at the end", metavar="N")
    early_stopping: int | None = option(
        None,
        "stop after this many rankings of the monitor images without a better precision@30 (map@r if whole classes "
        "are monitored), counted in the last stage and at the last image size",
        metavar="N",
    )
    checkpoint_minutes: float = option(5.0, "minutes between checkpoints within an epoch", metavar="N")

    def __post_init__(self) -> None:
        check_at_least(self, epochs=0, batch_size=1, eval_every=0, steps_per_epoch=1, early_stopping=1)
        check_positive(self, "checkpoint_minutes")
        if self.pretrain_epochs is not None and not 0 <= self.pretrain_epochs <= self.epochs:
            raise InputError(f"--pretrain-epochs is {self.pretrain_epochs}; it must be from 0 to --epochs")

    @property
    def softmax_epochs(self) -> int:
        """The number of epochs in the softmax stage, which comes first."""
        return self.epochs * 4 // 5 if self.pretrain_epochs is None else self.pretrain_epochs


@dataclass(frozen=True)
class RunConfig:
    """The name of the run, its optional export, and the machines it trains on."""

    run: str | None = option(None, "name of the run folder in runs/ (default: date and time)", metavar="NAME")
    onnx: bool = option(False, "also export embedding.onnx, for ONNX Runtime and other runtimes")
    projector: int = option(0, "images shown as thumbnails in TensorBoard's projector at the end; 0: none", metavar="N")
    hosts: int = option(
        1, "machines that train together (with JAX); each runs this command with the same flags", metavar="N"
    )
    host_index: int = option(0, "index of this machine; 0 writes the run folder", metavar="I")
    coordinator: str | None = option(None, "address at which the other hosts reach host 0", metavar="ADDRESS:PORT")

    def __post_init__(self) -> None:
        check_at_least(self, hosts=1, host_index=0, projector=0)
        if self.host_index >= self.hosts:
            raise InputError(f"--host-index is {self.host_index}; it counts from 0 and must be below --hosts")
        if self.hosts > 1 and self.coordinator is None:
            raise InputError("--hosts needs --coordinator ADDRESS:PORT, the address of host 0")
        if self.run is not None and (not self.run or self.run in (".", "..") or set(self.run) & set("/\\\0")):
            raise InputError(f"--run is {self.run!r}; it must be a folder's name, without a path")
