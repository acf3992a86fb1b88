"""Named sets of settings: what each changes against the defaults of `dr_keras.config.Config`."""

from typing import Any

# Neither a softmax stage nor anything else that this project adds to the assignment and the paper.
_LITERAL: dict[str, Any] = {
    "pretrain_epochs": 0,
    "classifier_weight": 0.0,
    "mining": "none",
    "images_per_class": 1,
    "proxies": 0,
    "progressive": "none",
    "flip": False,
    "crop": 1.0,
    "colour": 0.0,
    "operations": 0,
    "erase": 0.0,
    "weight_average": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The released model's recipe, sized for two CPU cores and two hours.
    "tiny-imagenet-cpu": {
        "epochs": 21,
        "pretrain_epochs": 19,
        "progressive": "32:0.4,48:0.3",
        "eval_every": 5,
    },
    # Sized for 20 minutes of one GPU of the H100's kind, with JAX; what of it is measured: docs/gpu.md.
    "tiny-imagenet-gpu": {
        "store": "device",
        "precision": "mixed_bfloat16",
        "width": 64,
        "stem_stride": 1,
        "epochs": 150,
        "pretrain_epochs": 144,
        "progressive": "32:0.4,48:0.3",
        "batch_size": 256,
        "learning_rate": 1.2e-2,
        "crop": 0.4,
        "operations": 2,
        "erase": 0.1,
        "mixup": 0.2,
        "cutmix": 0.5,
        "weight_average": 0.999,
        "eval_every": 50,
        "checkpoint_minutes": 1.0,
    },
    # The assignment taken literally: the paper's network, uniform triplets, the Euclidean distance, g = 1.0, no more.
    "assignment": _LITERAL
    | {
        "backbone": "alexnet",
        "embedding_dim": 4096,
        "distance": "euclidean",
        "margin": 1.0,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-3,
        "shift": 0,
    },
    # The paper's network at its own size, squared distances (eq. 1), Nesterov momentum, lambda = 0.001, dropout with
    # keep probability 0.6, random pixel shifts. The paper gives no learning rate and no g; these two are ours.
    "paper": _LITERAL
    | {
        "image_size": 225,
        "backbone": "alexnet",
        "embedding_dim": 4096,
        "distance": "squared",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-3,
        "dropout": 0.4,
        "shift": 8,
    },
}
