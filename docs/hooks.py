"""Has griffe read `Example:`, as Keras's docstrings say, as its own section `Examples:`."""

import re
from typing import Any

import griffe


class KerasExamples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
