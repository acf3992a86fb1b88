"""The version of dr_keras, in one place."""

__version__ = "0.1.0"
