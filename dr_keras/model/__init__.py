"""The networks and the ranking layer; `keras` and `keras.ops` only. Whoever imports one has all layers registered."""

from dr_keras.model import network as network  # imports every module that has a layer
