"""The report of `Duplicates`: an HTML page that contains its images, runs no script and loads nothing."""

import base64
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dr_keras.atomic_files import new_file
from dr_keras.data.image_ids import image_path
from dr_keras.data.thumbnails import jpeg_thumbnail
from dr_keras.errors import ImageError

if TYPE_CHECKING:
    from dr_keras.duplicates.find import Duplicates, Groups

MAX_GROUPS = 200  # groups shown in each section: about 1.5 MB of images
MAX_IMAGES = 12  # images shown of each group: a few rows on a screen
MAX_SKIPPED = 200  # unreadable files shown
THUMBNAIL_PIXELS = 96  # of the longer side
JPEG_QUALITY = 80  # 2 to 4 KB per thumbnail

# The name of each section, its heading, what it lists and what to do about it; the most pressing first.
SECTIONS = (
    (
        "leaks",
        "Leaks between splits",
        "Copies of one image in different splits, such as training and validation. A model that was trained on one "
        "has seen the other, so that metrics on held-out images are too good. Remove them from one of the splits.",
    ),
    (
        "cross_class",
        "Copies across classes",
        "Copies of one image in different classes. At most one of the classes is right, or the image shows both. "
        "Look at them, and remove or move those that are wrong.",
    ),
    (
        "exact",
        "Exact copies",
        "Files of the same content, byte for byte. All but one can be removed.",
    ),
    (
        "near",
        "Near-duplicates",
        "Files of different content that look the same: saved again, resized, brightened or cropped a little. Look "
        "before you remove one: two images of a series can be this similar.",
    ),
)

KIND_NAMES = {"exact": "exact copies", "near": "near-duplicates"}

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --card: #ffffff; --ink: #20242a; --faint: #5f6670; --line: #dfe1e4;
  --mark: #a33c10; --mark-paper: #fdeee6; --still: #eef0f2; --link: #2450a4; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1d2126; --ink: #e8eaed; --faint: #a2a9b3;
  --line: #343a42; --mark: #ffb08c; --mark-paper: #45271a; --still: #2a3037; --link: #9dbcff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.25rem; }
h3 { margin: 0; font-size: .875rem; font-weight: 600; }
h2 span { white-space: nowrap; }
p { margin: .25rem 0 0; max-width: 60rem; }
a { color: var(--link); }
.faint { color: var(--faint); }
.kinds { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0;
  padding: 0; list-style: none; }
.kinds li { padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.kinds a { display: flex; align-items: baseline; gap: .5rem; text-decoration: none; font-weight: 600; }
.kinds a:hover span { text-decoration: underline; }
.kinds b { font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.kinds p { font-size: .875rem; color: var(--faint); }
section { margin-top: 2.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .75rem;
  margin: 1rem 0 0; padding: 0; list-style: none; }
.groups > li { padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.wide { grid-column: 1 / -1; }
.head { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .5rem; }
.tag { padding: 0 .5rem; border-radius: 1rem; font-size: .75rem; background: var(--mark-paper); color: var(--mark); }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .75rem;
  margin-top: .625rem; }
figure { margin: 0; font-size: .75rem; line-height: 1.35; }
figure img, .gone { display: flex; align-items: center; justify-content: center; width: 100%; height: auto;
  aspect-ratio: 1; object-fit: contain; border-radius: .25rem; background: var(--still); color: var(--faint); }
figcaption { margin-top: .25rem; overflow-wrap: anywhere; }
figcaption span { display: block; }
.class { font-weight: 600; }
.more { margin-top: .625rem; font-size: .75rem; color: var(--faint); }
.files { margin: .75rem 0 0; padding-left: 1.25rem; font-size: .875rem; overflow-wrap: anywhere; }
"""


def save_report(found: "Duplicates", file: str | os.PathLike[str]) -> None:
    """Writes what was found as one HTML file that contains its images and loads nothing.

    Args:
        found: The groups; files that can no longer be read are shown as empty squares.
        file: Where to write it; an existing file is replaced.
    """
    with new_file(Path(file)) as temporary:
        temporary.write_text(report_html(found), encoding="utf-8")


def report_html(found: "Duplicates") -> str:
    """The report as HTML; see `save_report`."""
    return _Page(found).html()


class _Page:
    def __init__(self, found: "Duplicates") -> None:
        self._found = found
        self._exact = set(map(tuple, found.exact))
        self._groups: dict[str, Groups] = {name: getattr(found, name) for name, _, _ in SECTIONS}
        shown = (self._shown(group) for groups in self._groups.values() for group in groups[:MAX_GROUPS])
        self._uris = _data_uris(found, sorted({name for names in shown for name in names}))

    def html(self) -> str:
        found = self._found
        title = f"Copies in {_text(found.root.name or str(found.root))}"
        kinds = "".join(
            f'<li><a href="#{name}"><b>{len(self._groups[name]):,}</b> <span>{heading}</span></a><p>{text}</p></li>\n'
            for name, heading, text in SECTIONS
        )
        compared = f"{found.images:,} {_plural(found.images, 'image')} compared"
        if found.skipped:
            compared += f', <a href="#skipped">{len(found.skipped):,} could not be read</a>'
        body = "".join(self._section(name, heading) for name, heading, _ in SECTIONS) + self._skipped()
        style = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="faint">{compared}. The numbers count groups of copies; a group can be in several lists.</p>
<ul class="kinds">
{kinds}</ul>
</header>
<main>
{body}</main>
</body>
</html>
"""

    def _section(self, name: str, heading: str) -> str:
        groups = self._groups[name]
        count = f"{len(groups):,} {_plural(len(groups), 'group')}" if groups else "none"
        items = "".join(map(self._group, groups[:MAX_GROUPS]))
        listed = f'<ol class="groups">\n{items}</ol>\n' if groups else ""
        more = _more(len(groups) - MAX_GROUPS, "group")
        return (
            f'<section id="{name}" aria-labelledby="{name}-heading">\n'
            f'<h2 id="{name}-heading">{heading} <span class="faint">{count}</span></h2>\n{listed}{more}</section>\n'
        )

    def _group(self, group: list[str]) -> str:
        tags = ""
        for kinds, word in ((self._found.splits, "splits"), (self._found.labels, "classes")):
            different = len({kinds[name] for name in group if name in kinds})
            tags += f'<span class="tag">{different} {word}</span>' if different > 1 else ""
        kind = "exact" if tuple(group) in self._exact else "near"
        figures = "".join(map(self._figure, self._shown(group)))
        wide = ' class="wide"' if len(group) > 4 else ""
        return (
            f'<li{wide}><div class="head"><h3>{len(group):,} {KIND_NAMES[kind]}</h3>'
            f'{tags}</div><div class="images">{figures}</div>{_more(len(group) - MAX_IMAGES, "image")}</li>\n'
        )

    def _figure(self, name: str) -> str:
        class_name, split = self._class_name(name), self._found.splits.get(name)
        about = ", ".join(_text(part) for part in (class_name, split) if part) or "image"
        if self._uris[name]:
            image = f'<img src="{self._uris[name]}" alt="{about}: {_text(name)}" width="112" height="112">'
        else:
            image = '<span class="gone">cannot be read</span>'
        parts = (("class", class_name), ("split", split), ("faint", name))
        lines = "".join(f'<span class="{kind}"><bdi>{_breakable(part)}</bdi></span>' for kind, part in parts if part)
        return f"<figure>{image}<figcaption>{lines}</figcaption></figure>"

    def _skipped(self) -> str:
        names = list(self._found.skipped.items())
        if not names:
            return ""
        items = "".join(
            f"<li><bdi>{_breakable(name)}</bdi> {_text(reason)}</li>\n" for name, reason in names[:MAX_SKIPPED]
        )
        return (
            '<section id="skipped" aria-labelledby="skipped-heading">\n'
            f'<h2 id="skipped-heading">Not read <span class="faint">{len(names):,} {_plural(len(names), "file")}</span>'
            f'</h2>\n<ul class="files">\n{items}</ul>\n{_more(len(names) - MAX_SKIPPED, "file")}</section>\n'
        )

    def _shown(self, group: list[str]) -> list[str]:
        """The images of a group to show: first some that represent all of its classes and splits."""
        if len(group) <= MAX_IMAGES:
            return group
        seen: Counter[tuple[str | None, str | None]] = Counter()
        turns = []
        for name in group:
            kind = (self._found.labels.get(name), self._found.splits.get(name))
            turns.append((seen[kind], name))
            seen[kind] += 1
        return [name for _, name in sorted(turns)[:MAX_IMAGES]]

    def _class_name(self, name: str) -> str | None:
        label = self._found.labels.get(name)
        return None if label is None else self._found.class_names.get(label, label)


def _data_uris(found: "Duplicates", names: list[str]) -> dict[str, str]:
    """A data URI of each image, empty if it cannot be read; in threads, as Pillow releases the GIL."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(names, pool.map(_data_uri, (image_path(name, found.root) for name in names)), strict=True))


def _data_uri(file: str) -> str:
    try:
        made = jpeg_thumbnail(file, THUMBNAIL_PIXELS, JPEG_QUALITY, optimize=True)
    except ImageError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(made).decode()}"


def _text(value: str) -> str:
    """Escapes text; bytes of names that are not UTF-8 become \\udc.., which a page can hold."""
    return escape(value.encode("utf-8", "backslashreplace").decode())


def _breakable(value: str) -> str:
    """Like `_text`, with places where a path may wrap."""
    return _text(value).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _more(count: int, word: str) -> str:
    return f'<p class="more">and {count:,} more {_plural(count, word)}, not shown here</p>\n' if count > 0 else ""


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"
