"""The command `dr-keras`, and the three-line scripts that wrap it."""

import subprocess
import sys

import pytest
from conftest import ROOT, script

from dr_keras import invocation
from dr_keras.cli.main import COMMANDS, main
from dr_keras.version import __version__


def call(*arguments):
    """Runs `python -m dr_keras` with `arguments`."""
    command = [sys.executable, "-m", "dr_keras", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"dr_keras {__version__}\n"


def test_help_lists_each_subcommand_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, about in COMMANDS.items():
        assert f"  {name:<12}{about}" in lines


@pytest.mark.parametrize(("arguments", "message"), [([], "SUBCOMMAND"), (["find"], "invalid choice: 'find'")])
def test_a_subcommand_that_is_missing_or_unknown(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help_under_its_own_name(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: dr-keras {name} ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_a_subcommand_names_no_script(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert not any(f"{script}.py" in said for script in invocation.SCRIPTS)


def test_help_of_train_names_no_script(capsys):
    test_help_of_a_subcommand_names_no_script(capsys, "train")


@pytest.mark.parametrize("name", invocation.SCRIPTS)
def test_a_script_is_three_lines_and_goes_by_its_own_name(tmp_path, name):
    lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) == 3
    result = script(tmp_path, f"{name}.py", "--help")
    assert result.stdout.startswith(f"usage: {name}.py ")
    assert "dr-keras" not in result.stdout


def test_advice_names_the_command_as_it_was_started(tmp_path):
    called = call("retrieve", "--query", "x", "--run", "no-such-run")
    assert called.returncode == 2
    assert called.stderr.startswith("dr-keras retrieve: there is no run 'no-such-run'")
    result = script(tmp_path, "retrieve.py", "--query", "x")
    assert result.stderr.startswith("retrieve.py: ")
    assert result.stderr.endswith("train one first: python train.py\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_subcommands_and_flags(capsys, shell):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "--image-size" in printed or shell == "tcsh"
    assert all(name in printed for name in COMMANDS)


def test_bash_reads_its_completion(capsys):
    main(["completion", "bash"])
    checked = subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_only_what_runs_is_imported():
    code = (
        "import contextlib, sys; from dr_keras.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['retrieve', '--help'])\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(names & {'tensorflow', 'keras', 'faiss', 'shtab', 'fastapi', 'jax'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
