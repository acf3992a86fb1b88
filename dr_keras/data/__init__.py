"""From folders of images to batches of triplets."""

# The splits of a data set, as numbers in a catalog.
TRAIN, MONITOR, VALIDATION = 0, 1, 2
SPLIT_NAMES = ("train", "monitor", "validation")
