"""`subprocess` for Python commands that need not pay for their imports: `run` and `Popen`.

    done = warmed.run([sys.executable, "-P", "-m", "bc2", ...], capture_output=True, text=True)

Starting Python and importing torch and bc2 takes seconds, and running a command of a test often
less than one. Here one parent a session (an xdist worker) imports them once, and forks a child
for each command. See `warmed_parent` for what a child does before its command.

What is as ever: the child is a process of its own and a child of the caller, with its pid, session
and process group, signals, exit status, working directory, standard streams and ``pass_fds``; its
environment is what was given; it runs its command as the interpreter would (``-m``, ``-c`` or a
script; ``-P``), and ends as the interpreter does, ``atexit`` and tracebacks included. Only how it
starts is different, so `Popen` is `subprocess.Popen` in all else.

What is not: modules are imported already, so do not ask here what a command imports, how long it
takes to start or how much memory it needs; all children of a session share one hash seed; and
/proc shows the command line and the environment of the parent. Use `subprocess` for those.

``WARMED_PATH`` in the environment: folders that the child, and what it starts in this way, finds
modules in before all others, for packages that are not installed. ``PYTHONPATH`` is for
interpreters to read: with another one a command is started as ever.

``children=True``: what the command itself starts in this way (ranks by ``--nproc``, the runs of
``bc2 verify``) is forked too, by a parent of its own. Else it is started by the interpreter.

A command is started as ever where a fork would not do: another interpreter or option, a
``preexec_fn``, another value of a variable that is read while importing (`IMPORT_TIME`), or a
system without subreapers.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Variables that some library reads while it is imported, or when its first thread starts.
IMPORT_TIME = re.compile(
    r"(G?OMP|KMP|MKL|OPENBLAS|NUMEXPR|MALLOC|LD|PYTHON|PYTORCH|ATEN|TRITON|DS|CUDA|HF|MPL|RAY"
    r"|TRANSFORMERS|LC|TORCH(?!_ELASTIC_|_DISABLE_SHARE_RDZV_|_NCCL_))_?[A-Z0-9_]*"
    r"|TORCH(INDUCTOR|DYNAMO)_\w+|LANG|TZ|GLIBC_TUNABLES|BC2_KEEP_ENVIRONMENT|FORCE_COLOR|NO_COLOR"
)
#: But these: read when they are needed, or set by torch, scikit-learn, ray and huggingface_hub when
#: they are imported, which a test's own process may have done.
_RUNTIME = re.compile(
    r"TORCHELASTIC_\w+|TORCHINDUCTOR_CACHE_DIR|TORCH_WARM_POOL|KMP_(DUPLICATE_LIB_OK|INIT_AT_FORK)"
    r"|RAY_CLIENT_MODE|HF_XET_HIGH_PERFORMANCE|PYTORCH_NVML_BASED_CUDA_CHECK"
)

#: Subreapers are Linux's.
SUPPORTED = sys.platform == "linux"

_PR_SET_CHILD_SUBREAPER = 36


def import_time(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process which has done its imports is bound to."""
    return {
        name: value
        for name, value in environment.items()
        if IMPORT_TIME.fullmatch(name) and not _RUNTIME.fullmatch(name)
    }


def prctl(option: int, value: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of orphaned descendants."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


class Channel:
    """The caller's end of a warmed parent.

    Args:
        environment: of the parent.
        mortal: whether its children are to end with this process, however it ends.
    """

    def __init__(
        self, connection: socket.socket, environment: Mapping[str, str], *, mortal: bool = False
    ):
        self.connection, self.mortal = connection, mortal
        self.bound_to = import_time(environment)
        self._lock = threading.Lock()

    def fork(self, order: dict[str, Any], streams: Sequence[int]) -> int:
        """Have a child made of this process.

        Args:
            order: what it is to do, see `warmed_parent`.
            streams: become its 0, 1 and 2, and those of `order["keep"]`.

        Returns:
            Its pid, when it is in its session and directory.

        Raises:
            OSError: it could not be put there.
        """
        told, tell = os.pipe()
        with self._lock, os.fdopen(told, "rb") as answer, adopting():
            try:
                data = json.dumps({**order, "caller": os.getpid(), "mortal": self.mortal}).encode()
                fds = array.array("i", [tell, *streams]).tobytes()
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                self.connection.sendmsg([len(data).to_bytes(8, "big")], rights)
                self.connection.sendall(data)
            finally:
                os.close(tell)
            said = answer.read()
        if not said:
            raise RuntimeError("the warmed parent, or the child that it forked, is gone")
        found = json.loads(said)
        if "errno" in found:
            os.waitpid(found["pid"], 0)
            raise OSError(found["errno"], os.strerror(found["errno"]), found["where"])
        return int(found["pid"])


#: As it was before any test changed it.
_ENVIRONMENT = dict(os.environ)
_channel: Channel | None = None
_starting = threading.Lock()


def channel() -> Channel:
    """This process's warmed parent, started when first asked for."""
    global _channel
    with _starting:
        if _channel is None:
            _channel = _start()
    return _channel


def _start() -> Channel:
    ours, theirs = socket.socketpair()
    # Its __main__ becomes that of the commands, and holds nothing.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import warmed_parent; del sys.path[0]\n"
        "warmed_parent.main(int(sys.argv[2]))"
    )
    folder, fd = str(Path(__file__).parent), theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, folder, str(fd)],
        env=_ENVIRONMENT, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        cwd="/",
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return Channel(ours, _ENVIRONMENT, mortal=True)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` whose process is forked from the warmed parent if it can be.

    Args:
        children: whether the processes that it starts are, too.
    """

    def __init__(self, args: Any, *rest: Any, children: bool = False, **named: Any):
        self._children = children
        super().__init__(args, *rest, **named)

    def _execute_child(self, *given: Any) -> None:
        fork_child(self, given, super()._execute_child, lambda: channel(), self._children)


def run(args: Any, *, children: bool = False, timeout: float | None = None, **named: Any) -> Any:
    """`subprocess.run` with `Popen`."""
    check, text_in = named.pop("check", False), named.pop("input", None)
    if named.pop("capture_output", False):
        named.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if text_in is not None:
        named["stdin"] = subprocess.PIPE
    with Popen(args, children=children, **named) as process:
        try:
            out, err = process.communicate(text_in, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def command_of(args: Any) -> dict[str, Any] | None:
    """What a command line of this interpreter runs; None if it is another, or has options."""
    if isinstance(args, (str, bytes, os.PathLike)):
        return None
    words = [os.fsdecode(word) for word in args]
    if not words or words.pop(0) != sys.executable:
        return None
    safe = words[:1] == ["-P"]
    words = words[1:] if safe else words
    if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        return None
    how = words.pop(0) if words[0].startswith("-") else "script"
    return {"how": how, "what": words[0], "arguments": words[1:], "safe": safe} if words else None


def fork_child(
    process: Any, given: tuple[Any, ...], execute: Any, channel: Any, children: bool
) -> None:
    """`subprocess.Popen._execute_child`, by a fork where it can be.

    Args:
        given: its arguments.
        execute: the one of `subprocess`.
        channel: gives the channel to fork through.
    """
    (args, executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell, p2cread, p2cwrite,
     c2pread, c2pwrite, errread, errwrite, _, gid, gids, uid, umask, new_session,
     group) = given  # fmt: skip
    environment = dict(os.environ if env is None else env)
    command = command_of(args)
    plain = not (executable or preexec_fn or shell) and gid is gids is uid is None and umask < 0
    bound_to = channel().bound_to if SUPPORTED and command and plain else None
    if bound_to is None or bound_to != import_time(environment):
        execute(*given)
        return
    order = {
        "command": command, "cwd": os.fsdecode(cwd or os.getcwd()), "environment": environment,
        "keep": list(pass_fds), "new_session": new_session, "group": group, "children": children,
    }  # fmt: skip
    streams = [own if own != -1 else fd for fd, own in enumerate((p2cread, c2pwrite, errwrite))]
    process.pid = channel().fork(order, [*streams, *pass_fds])
    process._child_created = True
    process._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
