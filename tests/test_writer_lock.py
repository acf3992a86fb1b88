import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest

from dr_keras.errors import RunError
from dr_keras.index import writer_lock
from dr_keras.index.writer_lock import Locked, take_lock

TAKE = """
import sys, time
from pathlib import Path
from dr_keras.index.writer_lock import take_lock
lock = take_lock(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def is_free(folder) -> bool:
    try:
        take_lock(folder).release()
    except Locked:
        return False
    return True


def test_one_holder_at_a_time_in_one_process_too(tmp_path):
    lock = take_lock(tmp_path)
    with pytest.raises(Locked, match=rf"is being written to by .* \(process {os.getpid()}, since"):
        take_lock(tmp_path)
    lock.release()
    lock.release()  # already released
    assert is_free(tmp_path)


def test_any_thread_may_release_it(tmp_path):
    lock = take_lock(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert is_free(tmp_path)


def test_a_killed_process_holds_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "taken\n"
        with pytest.raises(Locked, match=rf"process {child.pid}, since"):
            take_lock(tmp_path)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert is_free(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_releases_nor_keeps_its_parents_lock(tmp_path):
    lock = take_lock(tmp_path)
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads of other tests, whose code the child does not call
        child = os.fork()
    if not child:
        os.close(theirs)
        lock.release()
        os.read(ours, 1)  # until the parent has checked that it still holds the lock and has released it
        os._exit(0)
    os.close(ours)
    try:
        assert not is_free(tmp_path)
        lock.release()
        assert is_free(tmp_path)
    finally:
        os.close(theirs)
        os.waitpid(child, 0)


def test_a_file_that_is_replaced_before_it_is_locked_does_not_count(tmp_path, monkeypatch):
    write_holder, replaced = writer_lock._write_holder, []

    def replace_once(descriptor):
        if not replaced:
            (tmp_path / "lock").rename(tmp_path / "old")
            (tmp_path / "lock").touch()
            replaced.append(descriptor)
        write_holder(descriptor)

    monkeypatch.setattr(writer_lock, "_write_holder", replace_once)
    lock = take_lock(tmp_path)
    assert replaced
    assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()
    assert not is_free(tmp_path)
    lock.release()


def test_only_a_folder_can_be_locked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be used"):
        take_lock(tmp_path / "file")


def test_the_index_can_be_imported_without_what_windows_lacks():
    code = (
        "import os, pkgutil, sys, importlib\n"
        "sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "for name in ('fdatasync', 'statvfs', 'pread', 'pwrite', 'O_NOFOLLOW', 'O_CLOEXEC', 'posix_fallocate'):\n"
        "    delattr(os, name)\n"
        "import dr_keras.index, dr_keras.duplicates\n"
        "for package in (dr_keras.index, dr_keras.duplicates):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
