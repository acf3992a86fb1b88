"""The networks and the ranking layer; `keras` and `keras.ops` only."""
