"""What import-linter cannot check: whether a package is imported with a module or only when a function needs it."""

import subprocess
import sys

FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
IMPORTS = """
import importlib, pkgutil, sys
for room in ("server", "index", "duplicates", "data", "search_model"):
    module = importlib.import_module(f"dr_keras.{room}")
    for _, name, _ in pkgutil.walk_packages(getattr(module, "__path__", ()), f"dr_keras.{room}."):
        if name not in ("dr_keras.data.batches", "dr_keras.data.augment_jax") and not name.endswith("_child"):
            importlib.import_module(name)
print(*sys.modules)
"""


def test_reading_searching_and_serving_import_no_framework(tmp_path):
    result = subprocess.run([sys.executable, "-c", IMPORTS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert {"dr_keras.server.routes", "dr_keras.data.sources.tfds", "dr_keras.duplicates"} <= imported
    assert not imported & FRAMEWORKS
