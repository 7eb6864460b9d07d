"""`audiovq` and `python` as recipes call them, in forks of one process that has imported all that they import.

A recipe runs a dozen commands, each of which would load PyTorch for seconds and compute for a fraction of one.

usage: commands.py FOLDER, which gets the two programs
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import select
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

IMPORTED = (
    *("audiovq.cli", "audiovq.data.prepare", "audiovq.evaluation.evaluate", "audiovq.evaluation.report"),
    *("audiovq.synthesis", "audiovq.tokenization.files", "audiovq.tokenization.run", "audiovq.training.autoencoder"),
    *("audiovq.training.prior", "librosa", "matplotlib.pyplot", "pesq", "pystoi"),
)
PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    with server.makefile("rw") as stream:
        stream.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]) + "\\n")
        stream.flush()
        sys.exit(int(stream.readline()))
"""
"""Passes its call on, and ends with the exit code."""


def wait_for_call(folder: Path) -> tuple[str, list[str]]:
    """Returns program and arguments of each call in a new process; ends when standard input does."""
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        for name in ("audiovq", "python"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                _, streams, *_ = socket.recv_fds(connection, 1, 3)
                program, arguments, cwd, environment = json.loads(stream.readline())
                if not (child := os.fork()):
                    for number, handle in enumerate(streams):
                        os.dup2(handle, number)
                    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
                    os.chdir(cwd)
                    os.environ.clear()
                    os.environ.update(environment)
                    return program, arguments
                for handle in streams:
                    os.close(handle)
                stream.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255}\n")
    sys.exit()


def run(program: str, arguments: list[str]) -> None:
    if program == "audiovq":
        sys.argv = [program, *arguments]
        import_module("audiovq.cli").main()
    elif arguments[0] == "-c":
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    forks = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda *_: forks  # Workers that a command starts need not import anything, either.
    gc.freeze()
    program, arguments = wait_for_call(Path(sys.argv[1]))
    try:
        run(program, arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(int(code))  # To wind up all that was imported takes longer than most commands.
