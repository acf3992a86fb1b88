"""The networks and the ranking layer, on any Keras backend. Importing any of them registers all layers."""

from dr_keras.model import network as network  # imports every module that has a layer
