"""`vivavoce` commands that are forked from a process which has imported torch: that takes longer than most of them.

`warm(folder)` starts that process and writes a script `vivavoce` into the folder, for the front of the path. The script
hands over its arguments, folder, environment and open files; the command runs in a process of its own that has imported
and done nothing else.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({place!r})
socket.send_fds(link, [b"f"], [0, 1, 2])
link.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
link.shutdown(socket.SHUT_WR)
sys.exit(int(link.makefile().read() or 1))
"""


def run(link: socket.socket) -> int:
    """The command that comes over `link`, in this process; its exit code."""
    _, files, _, _ = socket.recv_fds(link, 1, 3)
    arguments, folder, environment = json.loads(link.makefile().read())
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["vivavoce", *arguments]
    from vivavoce.cli import main

    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # as Python itself ends
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def serve(place: str) -> None:
    """Fork for every command until the parent has gone."""
    import torch  # noqa: F401

    import vivavoce.cli
    import vivavoce.systems
    import vivavoce.training  # noqa: F401

    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    listener.settimeout(1.0)
    while os.getppid() == parent:
        try:
            link, _ = listener.accept()
        except TimeoutError:
            continue
        link.settimeout(None)
        if os.fork() == 0:
            link.sendall(str(run(link)).encode())
            os._exit(0)
        link.close()
        while True:  # those that have ended
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


@contextmanager
def warm(folder: Path) -> Iterator[Path]:
    """The folder, with a command `vivavoce` in it that works while the block runs."""
    place = folder / "s"  # a short name: those of sockets are limited
    process = subprocess.Popen([sys.executable, __file__, str(place)])
    try:
        end = time.monotonic() + 120
        while not place.exists():
            assert process.poll() is None and time.monotonic() < end, "the warm process did not start"
            time.sleep(0.02)
        script = folder / "vivavoce"
        script.write_text(SCRIPT.format(python=sys.executable, place=str(place)))
        script.chmod(0o755)
        yield folder
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    serve(sys.argv[1])
