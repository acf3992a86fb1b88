"""The networks and the ranking layer, with `keras` and `keras.ops` only. Importing any of them registers all layers."""

from dr_keras.model import network as network  # imports every module that has a layer
