"""The settings of the triplet sampling layer."""

import os
from dataclasses import dataclass
from pathlib import Path

from dr_keras.errors import InputError
from dr_keras.options import check_at_least, check_choice, check_positive, option

SAMPLINGS = ("uniform", "relevance")
COLOR, NETWORK = "color", "network"


@dataclass(frozen=True)
class SamplingConfig:
    """How the triplets are drawn (Wang et al. 2014, section 5.1)."""

    triplets: str | None = option(
        None,
        "train on people's judgments: a CSV file with the columns query, positive, negative, and perhaps votes and "
        "votes_against; the images need no class folders, and there is no softmax stage",
        metavar="FILE.csv",
    )
    sampling: str = option(
        "uniform",
        "how triplets are drawn: uniform, or by how relevant the images of a class are to each other",
        choices=SAMPLINGS,
    )
    relevance: str = option(
        COLOR,
        "with --sampling relevance, how alike two images of a class are: by color and gradients; by the embedding of a "
        "network, which is that of --initial-weights or the released one; by that of any other run; or by a file "
        "of pairs with the columns query, positive and perhaps relevance",
        metavar=f"{COLOR}|{NETWORK}|RUN|FILE.csv",
    )
    out_of_class: float = option(
        1.0,
        "share of negatives that are of other classes; the rest, which needs --sampling relevance, is of the query's "
        "class and less relevant to it than the positive (the paper's best: 0.2)",
        metavar="SHARE",
    )
    positive_bound: float = option(
        1.0, "T_p of the paper: pairs more relevant than this are drawn as positives no more often", metavar="R"
    )
    relevance_gap: float = option(
        0.1, "T_r of the paper: by how much a negative of the query's class is less relevant to it", metavar="R"
    )
    buffer: int = option(
        1024,
        "images of a class among which triplets are drawn by relevance at a time; of larger classes, others follow",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.triplets is not None:
            object.__setattr__(self, "triplets", os.fspath(self.triplets))
        if self.relevance == "colour":
            object.__setattr__(self, "relevance", COLOR)
        check_choice(self, sampling=SAMPLINGS)
        check_at_least(self, buffer=2)
        check_positive(self, "positive_bound", "relevance_gap")
        if not 0 <= self.out_of_class <= 1:
            raise InputError(f"--out-of-class is {self.out_of_class}; it must be from 0 to 1")
        if self.triplets and self.sampling != "uniform":
            raise InputError("--triplets and --sampling relevance both choose the triplets; give one of them")
        if self.out_of_class < 1 and self.sampling != "relevance":
            raise InputError(
                "--out-of-class below 1 needs --sampling relevance, which says which images are less alike"
            )

    @property
    def relevance_file(self) -> Path | None:
        """The file of pairs that `relevance` names, if it names one."""
        return Path(self.relevance).expanduser() if self.relevance.lower().endswith(".csv") else None

    @property
    def tables(self) -> list[Path]:
        """The files whose lines say what is trained on: judgments, or pairs with their relevance."""
        judgments = Path(self.triplets).expanduser() if self.triplets else None
        pairs = self.relevance_file if self.sampling == "relevance" else None
        return [file for file in (judgments, pairs) if file is not None]
