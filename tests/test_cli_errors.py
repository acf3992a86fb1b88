"""Errors a user can fix are reported in one line; anything else is reported as a bug."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import indexed, script

from dr_keras.cli.errors import BROKEN_PIPE, BUG, REFUSED, STOPPED, run
from dr_keras.errors import InputError, Interrupted


def raises(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("give another"), REFUSED, "x.py: give another\n"),
        (Interrupted("saved"), STOPPED, "x.py: saved\n"),
        (KeyboardInterrupt(), STOPPED, "x.py: what was done is kept\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), REFUSED, "x.py: a/b: no space left on device\n"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300),
            REFUSED,
            f"x.py: {'n' * 300}: file name too long\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), REFUSED, "x.py: permission denied\n"),
        (MemoryError(), REFUSED, "x.py: there is not enough memory\n"),
        (BrokenPipeError(), BROKEN_PIPE, ""),
    ],
)
def test_errors_a_user_can_fix_are_one_line(capfd, error, status, message):
    out = os.dup(1)
    try:
        assert run("x.py", raises(error), stopped="what was done is kept") == status
    finally:
        os.dup2(out, 1)
        os.close(out)
    assert capfd.readouterr().err == message


@pytest.mark.parametrize(
    "error", [ValueError("odd\nthing"), KeyError("k"), OSError(errno.EBADF, "Bad descriptor"), AssertionError()]
)
def test_a_bug_is_one_line_and_its_traceback_a_file(capfd, tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("train.py", raises(error)) == BUG
    said = capfd.readouterr().err
    (file,) = tmp_path.iterdir()
    assert said.count("\n") == 1
    assert said.startswith(f"train.py: this is a bug of dr_keras ({type(error).__name__}")
    assert said.endswith(f"please report it with {file}\n")
    text = file.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "def command" not in text
    assert type(error).__name__ in text


def test_a_bug_on_a_full_disk_is_shown(capfd, monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: raises(OSError(errno.ENOSPC, "No space left on device"))())
    assert run("train.py", raises(ValueError("x"))) == BUG
    assert "Traceback" in capfd.readouterr().err


def test_exit_statuses_and_results_pass():
    assert run("x.py", lambda: 3) == 3
    with pytest.raises(SystemExit):
        run("x.py", raises(SystemExit(2)))


def refused(place, name, *arguments, env=None, words=""):
    done = script(place, name, *arguments, env=env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith((f"{name}: ", "usage: ")) or f"{name}: error: " in last
    assert words.lower() in last.lower(), last
    return last


LONG = "n" * 300


@pytest.fixture(scope="module")
def same_place(workplace, tmp_path_factory):
    """A working folder with an index that refused commands leave unchanged."""
    return indexed(tmp_path_factory.mktemp("refused"), workplace)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train.py", ["--data", "mine", "--run", LONG], "name too long"),
        ("train.py", ["--data", LONG, "--run", "x"], "name too long"),
        ("train.py", ["--data", "~nobody-of-that-name/x", "--run", "x"], "does not exist"),
        ("train.py", ["--data", "mine", "--run", "x", "--initial-weights", LONG], ""),
        ("retrieve.py", ["--query", LONG], "no image is called"),
        ("retrieve.py", ["--query", f"./{LONG}"], "no image is called"),
        ("retrieve.py", ["--query", "bars_0.png", "--max-distance", "inf"], "--max-distance"),
        ("retrieve.py", ["--query", "mine"], ""),
        ("retrieve.py", ["--query", "./mine"], "is a directory"),
        ("retrieve.py", ["--query", "/dev/zero"], "not a regular file"),
        ("retrieve.py", ["--query", "a\udcff.png"], "no image is called"),
        ("retrieve.py", ["--run", LONG, "--query", "a"], ""),
        ("retrieve.py", ["--index", LONG, "--query", "a"], ""),
        ("retrieve.py", ["--gallery", LONG, "--query", "a"], "name too long"),
        ("retrieve.py", ["--query", "bars_0.png", "--save", "picture"], "has no ending; choose one of .png, .jpg"),
        ("retrieve.py", ["--query", "bars_0.png", "--save", "a.xyz"], "has the ending .xyz; choose one of .png, .jpg"),
        ("retrieve.py", ["--query", "bars_0.png", "--save", f"{LONG}.png"], "name too long"),
        ("retrieve.py", ["--query", "bars_0.png", "--save", "mine/no/../../mine/bars/bars_0.png/x.png"], ""),
        ("index.py", ["add", "mine", "--index", "my-index", "--set", "a=2", "--set", "a.b=1"], "--set a.b=1"),
        ("index.py", ["add", "mine", "--index", "my-index", "--set", "a.b=1", "--set", "a=2"], "--set a=2"),
        ("index.py", ["add", "mine", "--index", "my-index", "--set", "a=NaN"], "JSON"),
        ("index.py", ["add", LONG, "--index", "my-index"], "name too long"),
        ("index.py", ["add", "mine", "--index", LONG], "name too long"),
        ("index.py", ["export", "x.xlsx", "--index", "my-index"], ".npy"),
        ("index.py", ["export", f"{LONG}.npy", "--index", "my-index"], "name too long"),
        ("index.py", ["sync", "/dev/null", "--index", "my-index"], "there is no folder"),
        ("index.py", ["duplicates", LONG], "name too long"),
        ("index.py", ["duplicates", "mine", "--json", "mine"], ""),
        ("evaluate.py", ["--data", LONG], "name too long"),
        ("serve.py", ["--index", LONG], ""),
        ("serve.py", ["--index", "my-index", "--writable", "--uploads", "x", "--token-file", LONG], "name too long"),
    ],
)
def test_odd_arguments_are_one_line(same_place, name, arguments, words):
    refused(same_place, name, *arguments, words=words)


def test_no_home_directory(place, tmp_path):
    """A container's user without one: HOME is unset and there is no passwd entry."""
    code = (
        "import os, pwd, sys\n"
        "os.environ.pop('HOME', None); os.environ.pop('DR_KERAS_CACHE', None)\n"
        "pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError('no such user'))\n"
        "from dr_keras.cli.errors import run\n"
        "from dr_keras.atomic_files import cache_folder\n"
        "sys.exit(run('x.py', lambda: print(cache_folder()) or 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        REFUSED,
        "x.py: this user has no home directory to keep data in; set DR_KERAS_CACHE to a folder\n",
    )
    env = {"HOME": "/nonexistent", "DR_KERAS_CACHE": ""}
    done = script(place, "retrieve.py", "--gallery", "mine", "--query", "bars_0.png", env=env)
    assert "Traceback" not in done.stderr


@pytest.mark.nightly
@pytest.mark.usefixtures("export_here", "eagerly")
def test_class_names_that_are_not_utf8(place, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9\n")
    (place / "mine" / "disc").rename(odd)
    (place / "data").mkdir()
    odd.rename(place / "data" / odd.name)
    (place / "mine" / "bars").rename(place / "data" / "bars")
    flags = ("--image-size", 16, "--backbone", "resnet10", "--width", 4, "--embedding-dim", 8, "--batch-size", 4)
    done = script(
        place, "train.py", "--data", "data", "--run", "odd", *flags, "--epochs", 1, "--steps-per-epoch", 2, "--shift", 1
    )
    assert done.returncode == 0, done.stderr
    for name, *arguments in (
        ("evaluate.py", "--run", "odd", "--no-baselines"),
        ("retrieve.py", "--run", "odd", "--query", "bars_0.png", "--save", "x.png"),
        ("index.py", "stats", "--run", "odd"),
    ):
        done = script(place, name, *arguments, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr


def test_output_that_nobody_reads_is_not_an_error(place):
    root = Path(__file__).parent.parent
    command = f"{sys.executable} {root}/retrieve.py --index my-index --query bars_0.png --json | true"
    done = subprocess.run(
        command, shell=True, cwd=place, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert done.stderr == ""
