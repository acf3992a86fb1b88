"""Uploads and requests of every kind, made by Hypothesis and Schemathesis: refused plainly, never a failure.

FUZZ_INPUTS=100000 python -m pytest tests/test_fuzz.py -k upload     # as many uploads; a few hundred by default
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_encoded, examples, indexed, serving
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from served import TOKEN

from dr_keras import load
from dr_keras.server.routes import create_app

UPLOADS = int(os.environ.get("FUZZ_INPUTS", examples(400)))
REQUESTS = str(examples(20))  # of Schemathesis, a route and phase
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "TGA", "PPM")  # the last three are not taken
SEEDS = [draw_encoded(seed, name, kind, size) for seed, name in enumerate(("disc", "bars")) for kind in KINDS
         for size in (3, 20)]  # fmt: skip
HEAD = b'Content-Disposition: form-data; name="image"'
QUIET: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@pytest.fixture(scope="module")
def place(workplace, tmp_path_factory):
    """A working folder with an index of 16 pictures; what is done to it stays."""
    return indexed(tmp_path_factory.mktemp("fuzz"), workplace)


@pytest.fixture(scope="module")
def page(place):
    model = load(place / "runs" / "small", runtime="litert", index=place / "my-index")
    with TestClient(create_app(model)) as made:
        yield made


@st.composite
def broken_images(draw):
    """An image's file with some of its bytes changed, left out, doubled, or replaced by another file's."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        # Headers are short and say most: half of all changes are among the first bytes.
        at = draw(st.integers(0, min(len(data), 64) - 1) | st.integers(0, len(data) - 1))
        what = draw(st.sampled_from(("byte", "number", "cut", "leave out", "double", "other", "text")))
        if what == "byte":
            data[at] = draw(st.integers(0, 255))
        elif what == "number":
            number = draw(st.sampled_from((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)))
            data[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(("little", "big"))))
        elif what == "cut":
            del data[at:]
        elif what == "leave out":
            del data[at : at + draw(st.integers(1, 40))]
        elif what == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        elif what == "other":
            data[at:] = draw(st.sampled_from(SEEDS))[at:]
        else:
            data[at:at] = draw(st.binary(max_size=40))
    return bytes(data)


@settings(max_examples=UPLOADS, **QUIET)
@given(data=broken_images() | st.binary(max_size=200))
@example(data=b"MMOR")  # the first bytes of a raw photo, and no more
def test_every_upload_is_searched_for_or_refused(page, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it finds in broken files
        answer = page.post("/v1/search?k=3", files={"image": ("x.png", data, "image/png")})
    said = answer.json()
    if answer.status_code == 200:
        distances = [result["distance"] for result in said["results"]]
        assert len(distances) == 3
        assert np.isfinite(distances).all()
    else:
        assert answer.status_code in (400, 413, 415)
        assert said["detail"]
        assert "/" not in said["detail"].replace("and/or", "")  # no path of the server


@settings(max_examples=max(examples(100), UPLOADS // 10), **QUIET)
@given(
    body=st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            (b"--x", b"\r\n", b"--", b'Content-Disposition: form-data; name="image"', b"; filename=a", b"x")
        )
        | st.binary(max_size=8),
        max_size=30,
    ).map(b"".join)
)
def test_every_form_is_read_or_refused(page, body):
    answer = page.post("/v1/search", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]


# What its own list of refusals lacks: an address that is too long, and a body.
SCHEMATHESIS = """[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 414, 415, 422]
"""


@pytest.mark.slow
def test_the_api_is_as_it_is_described(place):
    (place / "schemathesis.toml").write_text(SCHEMATHESIS)
    arguments = ("--index", "my-index", "--writable", "--uploads", "uploads")
    with serving(place, *arguments, env={"DR_KERAS_TOKEN": TOKEN}) as (_, address):
        found = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                *("run", f"{address}/openapi.json", "--max-examples", REQUESTS, "--seed", "1", "--no-color"),
                # That what a schema allows is accepted: it cannot say which bytes are an image, or which ids there are.
                *("--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "filter_too_much"),
                *("--header", f"Authorization: Bearer {TOKEN}", "--request-timeout", "20"),
            ],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode == 0, found.stdout[-6000:]
