"""What an index reports of itself."""

from typing import Any

from dr_keras.data.parts import windows
from dr_keras.index.image_files import ImageFiles
from dr_keras.index.local_engine import LocalEngine
from dr_keras.index.records import Records
from dr_keras.index.store import Store


def index_stats(store: Store, records: Records, image_files: ImageFiles, engine: LocalEngine) -> dict[str, Any]:
    """Returns counts, sizes in bytes and the engine, as plain values; see `dr_keras.index.index.Index.stats`."""
    images = records.count()
    return {
        "path": str(store.folder),
        "root": store.meta["root"],
        "run": store.meta["run"],
        "head": store.meta.get("head", "trained"),
        "images": images,
        "classes": records.label_count(),
        "splits": {name or "added": count for name, count in sorted(records.split_counts().items())},
        "skipped": len(image_files.skipped()),
        "dim": store.meta["dim"],
        "parts": len(windows(store.meta.get("parts", 0))),
        "engine": engine.stats(),
        "rows": store.rows,
        "gaps": store.rows - images,
        "bytes": store.file_bytes(),
        "version": store.meta["version"],
    }
