"""Imports every module of dr_keras, optionally as if some standard modules did not exist; prints those that fail.

    python tests/import_all.py                          # optional packages may be missing
    python tests/import_all.py --without fcntl,pwd      # as if Python lacked these modules

Exits with status 1 if a module fails. The standard library may itself use the refused modules, so only imports from
this package fail.
"""

import argparse
import builtins
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIONAL = {"jax", "keras", "pooch", "ray", "requests", "tensorboardX", "tensorflow", "tensorflow_datasets"}
FILES = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "dr_keras").rglob("*.py")]
MODULES = sorted(".".join(file.parts).removesuffix(".__init__") for file in FILES if file.name != "__main__")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", default="", metavar="MODULES", help="modules to refuse, separated by commas")
    refuse(set(parser.parse_args().without.split(",")))
    failed = 0
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL:
                failed += 1
                print(f"{name}: {error}")
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
    print(f"{len(MODULES)} modules, {failed} failed")
    return 1 if failed else 0


def refuse(modules: set[str]) -> None:
    """Makes dr_keras fail to import `modules`."""
    original = builtins.__import__

    def checked(name, globals=None, locals=None, fromlist=(), level=0):
        if name.partition(".")[0] in modules and str((globals or {}).get("__name__", "")).startswith("dr_keras"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = checked


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
