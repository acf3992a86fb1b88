#!/usr/bin/env python3
"""Writes a network of DINOv2-S's shape with random weights, to measure speed where DINOv2 cannot be downloaded.

    python benchmarks/dinov2_shape.py dinov2-shape
    python train.py --backbone hub:./dinov2-shape --epochs 0 --run dinov2-shape

12 blocks of 384 numbers, patches of 14 x 14 pixels, 224 px (Oquab et al. 2024). Its features mean nothing.
"""

import argparse

import keras_hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    options = parser.parse_args()
    network = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=12,
        hidden_dim=384,
        num_heads=6,
        intermediate_dim=4 * 384,
        image_shape=(224, 224, 3),
        position_embedding_shape=(224, 224),
    )
    network.save_to_preset(options.folder)
    scale, offset = [1 / 58, 1 / 57, 1 / 57], [-2.1, -2.0, -1.8]
    converter = keras_hub.layers.DINOV2ImageConverter(image_size=(224, 224), scale=scale, offset=offset)
    converter.save_to_preset(options.folder)
    print(f"{network.count_params():,} weights in {options.folder}")


if __name__ == "__main__":
    main()
