"""From folders of images to batches of triplets."""
