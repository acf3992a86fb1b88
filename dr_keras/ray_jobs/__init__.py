"""Reads and embeds files on a Ray cluster.

`cluster` starts a process that drives Ray (`driver`), hands it blocks of items and takes what comes back; `model` is
what a worker embeds with; `adding` and `collection` are what `index.py add`, `duplicates` and `evaluate.py` do with it.
The process of the command itself never imports Ray.
"""
