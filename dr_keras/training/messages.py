"""Messages about the data and settings of a run."""

import json
from typing import Any

from rich.console import Console

from dr_keras.atomic_files import read_json
from dr_keras.data.catalog import Catalog
from dr_keras.data.pixel_store import Pixels, StreamedImages
from dr_keras.invocation import command
from dr_keras.runs import Run


def other_images(catalog: Catalog, run: Run) -> str:
    """Returns the error message for images that differ from those of the checkpoint.

    Args:
        catalog: The images.
        run: The run, which was started with different images.
    """
    try:
        before = read_json(run.report_file)["images"]
        theirs = f"{before:,} other images" if before != len(catalog) else "the same number of other images"
    except (OSError, ValueError, KeyError, TypeError):
        theirs = "other images"
    return (
        f"{run.path} was started with {theirs}, not with the {len(catalog):,} images in {catalog.root}; "
        "point --data at its images, or start another run"
    )


def print_data(console: Console, catalog: Catalog, report: dict[str, Any], run: Run) -> None:
    """Prints the number of images, the skipped files, and notes on the data.

    Args:
        console: Where to print.
        catalog: The usable images.
        report: The data report.
        run: The run folder, which holds the report.
    """
    splits = ", ".join(f"{count:,} {name}" for name, count in report["splits"].items())
    console.print(f"{len(catalog):,} images of {len(catalog.classes)} classes: {splits}")
    if report["skipped_count"]:
        console.print(
            f"{report['skipped_count']} files skipped, {report['skipped'][0]['id']} first "
            f"({report['skipped'][0]['reason']}); all are listed in {run.report_file}"
        )
    for note in report["notes"]:
        console.print(f"note: {note}")
    if leaks := report.get("leaks"):
        console.print(
            f"{len(leaks)} pictures are both training and validation images, {' and '.join(leaks[0][:2])} first, so "
            f"figures on the validation images are slightly too good; see {command('index')} duplicates {catalog.root}"
        )


def print_lost(console: Console, pixels: Pixels) -> None:
    """Prints how many images disappeared or became unreadable during the run.

    Args:
        console: Where to print.
        pixels: The images.
    """
    if isinstance(pixels, StreamedImages) and pixels.lost:
        console.print(
            f"{len(pixels.lost)} images could no longer be read during the run and were replaced by gray squares: "
            f"{min(pixels.lost)} first"
        )


def settings_table(values: dict[str, Any]) -> str:
    """Returns settings as a Markdown table, for TensorBoard.

    Args:
        values: Values of the settings by name.
    """
    return "| setting | value |\n|---|---|\n" + "\n".join(f"| {key} | {json.dumps(v)} |" for key, v in values.items())
