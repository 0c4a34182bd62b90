"""Programs that would do harm: each is tried, in both modes, as root and as anyone."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bc2.sandbox.limits import Limits
from bc2.sandbox.readable import readable_paths
from bc2.sandbox.run import Program, Sandbox

SHORT = Limits(wall_seconds=0.7)


def report(anyones: Any, body: str, limits: Limits | None = None, **names: object) -> str:
    """What a function `f` with this body returns, shown by a failing test."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    source = f"import ctypes, os, sys\n{given}{TRIED}def f():\n{lines}"
    outcome = anyones.run(source, "found = f()\nassert False, found", limits)
    assert outcome.verdict == "failed", outcome
    detail: str = outcome.detail
    assert detail.startswith("AssertionError: "), outcome
    return detail.removeprefix("AssertionError: ")


#: Tells which of several attacks went through.
TRIED = """
def tried(**attacks):
    found = []
    for name, attack in attacks.items():
        try:
            attack()
            found.append(name)
        except Exception:
            pass
    return found
def call(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args]) < 0:
        raise OSError(ctypes.get_errno())
"""


@pytest.fixture
def theirs(anyones: Any) -> Iterator[Path]:
    """A folder that the sandbox's user may do anything with, and so may everyone."""
    with tempfile.TemporaryDirectory(prefix="bc2-theirs-") as name:
        folder = Path(name)  # pytest's own folders are for their owner only
        (folder / "secret").write_text("for no program")
        for path in (folder, folder / "secret"):
            path.chmod(0o777)
            if os.geteuid() == 0:
                os.chown(path, anyones.user, anyones.user)
        yield folder


@pytest.fixture
def sleeper(anyones: Any) -> Iterator[int]:
    """A process of the sandbox's user, which no program may touch."""
    user = {"user": anyones.user} if os.geteuid() == 0 else {}
    process = subprocess.Popen(["sleep", "100"], **user)  # type: ignore[call-overload]
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


def test_files_outside_cannot_be_read(anyones: Any, theirs: Path) -> None:
    at_home = [str(path) for path in Path.home().iterdir() if path.is_file()]
    assert report(anyones, """
def at_home():
    for path in files:
        try:
            return open(path).read(1)
        except OSError:
            pass
    raise OSError
return tried(
    secret=lambda: open(outside + "/secret").read(),
    listing=lambda: os.listdir(outside),
    opened=lambda: os.open(outside + "/secret", os.O_RDONLY),
    link=lambda: os.link(outside + "/secret", "mine"),
    linked=lambda: (os.symlink(outside + "/secret", "mine"), open("mine").read()),
    home=at_home,
    tmp=lambda: os.listdir("/tmp").index(outside.split("/")[2]),
    users=lambda: open("/etc/passwd").read(),
    here=lambda: open(checkout).read(),
    environment=lambda: open("/proc/self/environ").read(),
    parent=lambda: open(f"/proc/{os.getppid()}/environ").read(),
    memory=lambda: open("/proc/self/mem", "rb"),
    kernel=lambda: os.listdir("/sys"),
)
""", outside=str(theirs), checkout=str(Path(__file__)), files=at_home) == "[]"  # fmt: skip


def test_the_root_holds_nothing_but_python(sandbox: Sandbox) -> None:
    if sandbox.mode == "landlock":
        assert report(sandbox, "return tried(root=lambda: os.listdir('/'))") == "[]"
        return
    tops = {Path(path).parts[1] for path in readable_paths()}
    found = report(sandbox, "return sorted(os.listdir('/')), os.listdir('/dev')")
    assert set(eval(found)[0]) == tops | {"box", "dev", "etc"}
    assert set(eval(found)[1]) == {"null", "zero", "urandom"}


def test_files_outside_cannot_be_changed(anyones: Any, theirs: Path) -> None:
    before = (theirs / "secret").stat()
    assert report(anyones, """
target = outside + "/secret"
return tried(
    write=lambda: open(target, "a"),
    empty=lambda: os.truncate(target, 0),
    remove=lambda: os.remove(target),
    rename=lambda: os.rename(target, outside + "/other"),
    move=lambda: os.rename(target, "mine"),
    mode=lambda: os.chmod(target, 0o600),
    owner=lambda: os.chown(target, os.getuid(), os.getgid()),
    times=lambda: os.utime(target, (0, 0)),
    attribute=lambda: os.setxattr(target, "user.x", b"1"),
    new=lambda: open(outside + "/new", "w"),
    folder=lambda: os.mkdir(outside + "/folder"),
    link=lambda: os.symlink("/", outside + "/link"),
    pipe=lambda: os.mkfifo(outside + "/pipe"),
    tmp=lambda: open("/tmp/new", "w"),
    python=lambda: open(os.__file__, "a"),
    module=lambda: open(os.path.dirname(os.__file__) + "/new.py", "w"),
)
""", outside=str(theirs)) == "[]"  # fmt: skip
    after = (theirs / "secret").stat()
    assert [path.name for path in theirs.iterdir()] == ["secret"]
    assert (after.st_mode, after.st_mtime, after.st_uid) == (
        before.st_mode, before.st_mtime, before.st_uid,
    )  # fmt: skip


def test_a_fork_bomb_has_no_fuse(anyones: Any) -> None:
    assert report(anyones, """
import multiprocessing, subprocess
flags = 17
return tried(
    fork=os.fork,
    forkpty=os.forkpty,
    spawn=lambda: subprocess.run([sys.executable, "-c", ""]),
    other=lambda: os.posix_spawn("/bin/true", ["true"], {}),
    pool=lambda: multiprocessing.Pool(2),
    exec=lambda: os.execv(sys.executable, ["python", "-c", ""]),
    clone=lambda: call(220 if os.uname().machine == "aarch64" else 56, flags, 0, 0, 0, 0),
    vfork=lambda: call(-1 if os.uname().machine == "aarch64" else 58),
    clone3=lambda: call(435, 0, 88),
)
""") == "[]"  # fmt: skip
    outcome = anyones.run(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "f", SHORT
    )
    assert outcome.verdict in ("timed_out", "killed")


def test_threads_are_limited(anyones: Any) -> None:
    found = report(anyones, """
import threading, time
threading.stack_size(65536)
n = 0
try:
    while n < 2000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        n += 1
except RuntimeError:
    pass
return n
""", Limits(processes=20))  # fmt: skip
    assert 1 <= int(found) <= 20


ENDLESS = [
    "while True: pass",
    "import signal\nfor n in (14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "import time\ntime.sleep(1000)",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "9 ** 9 ** 9",
    "import threading\nthreading.Thread(target=input).start()\nthreading.Event().wait()",
]


def test_endless_programs_end(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    programs = [Program(source, "f") for source in ENDLESS]
    outcomes = list(sandbox.run_all(programs, workers=len(programs), limits=SHORT))
    assert [outcome.verdict for outcome in outcomes] == ["timed_out"] * len(programs)
    assert {outcome.detail for outcome in outcomes} == {"no end after 0.7 s"}
    assert time.monotonic() - begin < 5


def test_processor_time_is_limited(sandbox: Sandbox) -> None:
    outcome = sandbox.run("while True: pass", "f", Limits(cpu_seconds=1, wall_seconds=60))
    assert outcome.verdict == "timed_out"
    assert outcome.detail == "the candidate used up its processor time"


def test_endless_tests_end(sandbox: Sandbox) -> None:
    assert sandbox.run("", "while True: pass", SHORT).verdict == "timed_out"


def test_memory_is_limited(sandbox: Sandbox) -> None:
    outcome = sandbox.run("x = bytearray(4 << 30)", "", SHORT)
    assert (outcome.verdict, outcome.detail) == ("failed", "MemoryError")
    grows = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    assert not sandbox.run(grows, "f", Limits(memory_bytes=300 << 20)).passed


def test_a_crash_is_told(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import ctypes\nctypes.string_at(1)", "f")
    assert (outcome.verdict, outcome.detail) == ("killed", "the candidate was ended by SIGSEGV")


def test_files_are_limited(anyones: Any) -> None:
    limits = Limits(file_bytes=1 << 20, wall_seconds=5.0)
    large = "with open('a', 'wb') as s:\n    for i in range(100): s.write(bytes(1 << 20))"
    assert not anyones.run(large, "", limits).passed
    many = (
        "import time\nfor i in range(100):\n"
        "    with open(f'{i}', 'wb') as s: s.write(bytes(1 << 16))\n"
        "time.sleep(0.2)"
    )
    assert not anyones.run(many, "", limits).passed
    empty = "import time\nfor i in range(100_000): open(f'{i}', 'w').close()\ntime.sleep(0.2)"
    assert not anyones.run(empty, "", limits).passed


def test_files_that_come_and_go_do_not_disturb(sandbox: Sandbox) -> None:
    source = """
import os
while True:
    for i in range(50): open(f"{i}", "w").close()
    for i in range(50): os.remove(f"{i}")
"""
    assert sandbox.run(source, "f", SHORT).verdict == "timed_out"


def test_open_files_are_limited(sandbox: Sandbox) -> None:
    found = report(sandbox, """
n = 0
try:
    while True:
        os.dup(0)
        n += 1
except OSError:
    return n
""", Limits(open_files=30))  # fmt: skip
    assert int(found) < 30


def test_others_cannot_be_killed(anyones: Any, sleeper: int) -> None:
    assert report(anyones, """
import fcntl, resource, signal
def owner():
    r, w = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, other)
def on_signal():
    fcntl.fcntl(0, 10, signal.SIGKILL)
return tried(
    other=lambda: os.kill(other, signal.SIGKILL),
    looked=lambda: os.kill(other, 0),
    parent=lambda: os.kill(os.getppid(), signal.SIGKILL),
    first=lambda: os.kill(1, signal.SIGKILL),
    all=lambda: os.kill(-1, signal.SIGKILL),
    group=lambda: os.kill(0, signal.SIGKILL),
    own_group=lambda: os.killpg(os.getpgid(0), signal.SIGKILL),
    handle=lambda: os.pidfd_open(other),
    owner=owner,
    on_signal=on_signal,
    limits=lambda: resource.prlimit(other, resource.RLIMIT_CPU, (1, 1)),
    priority=lambda: os.setpriority(os.PRIO_PROCESS, other, 19),
    scheduler=lambda: os.sched_setaffinity(other, {0}),
    nice=lambda: os.nice(1),
)
""", other=sleeper) == "[]"  # fmt: skip


def test_the_supervisor_outlives_an_attempt(anyones: Any) -> None:
    source = """
import os, signal
def f():
    for pid in range(-1, 70000):
        if pid != os.getpid():
            try: os.kill(pid, signal.SIGKILL)
            except OSError: pass
    return 1
"""
    assert anyones.run(source, "assert f() == 1").passed
    assert anyones.run("def f(): return 1", "assert f() == 1").passed


#: Numbers for x86_64 and aarch64 of calls that must be refused whatever their arguments.
REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "keyctl": (250, 219), "add_key": (248, 217),
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "shmget": (29, 194),
    "msgget": (68, 186), "mq_open": (240, 180), "socket": (41, 198), "connect": (42, 203),
    "bind": (49, 200), "execve": (59, 221), "execveat": (322, 281), "fanotify_init": (300, 262),
    "inotify_init1": (294, 26), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setuid": (105, 146), "setresuid": (117, 147), "capset": (126, 91), "seccomp": (317, 277),
    "personality": (135, 92), "kexec_load": (246, 104), "init_module": (175, 105),
    "reboot": (169, 142), "swapon": (167, 224), "settimeofday": (164, 170), "quotactl": (179, 60),
    "chmod": (90, 53), "fchmod": (91, 52), "landlock_restrict_self": (446, 446),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "setrlimit of another architecture": (0x40000000 + 160, 999),
}  # fmt: skip


def test_calls_of_the_kernel_are_refused(anyones: Any) -> None:
    found = report(anyones, """
import errno
numbers = {n: v[os.uname().machine == "aarch64"] for n, v in refused.items()}
libc = ctypes.CDLL(None, use_errno=True)
wrong = []
for name, number in numbers.items():
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
    if result != -1 or ctypes.get_errno() != errno.EPERM:
        wrong.append((name, result, ctypes.get_errno()))
return wrong
""", refused=REFUSED)  # fmt: skip
    assert found == "[]"


def test_no_privilege_is_left(anyones: Any, mode: str) -> None:
    found = eval(report(anyones, """
import resource, struct
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("=Ii", 0x20080522, 0)
data = ctypes.create_string_buffer(24)
libc.capget(header, data)
raised = tried(limit=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
               uid=lambda: os.setuid(0), groups=lambda: os.setgroups([0]))
return struct.unpack("=6I", data.raw), os.getuid() == 0, os.getgroups() == [0], raised
"""))  # fmt: skip
    # Read and search: under Landlock, for a Python that only root may read; see the docs.
    search = 1 << 2
    assert found[0] == (0, 0, 0, 0, 0, 0) or (
        (mode, anyones.user, found[0]) == ("landlock", 0, (search, search, 0, 0, 0, 0))
    )
    assert found[1:3] == (False, False)
    assert found[3] == []


def test_no_socket_leads_out(anyones: Any, theirs: Path) -> None:
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as named:
        inet.bind(("127.0.0.1", 0))
        named.bind(str(theirs / "socket"))
        (theirs / "socket").chmod(0o777)
        for server in (inet, named):
            server.listen()
            server.setblocking(False)
        assert report(anyones, """
import socket, urllib.request
return tried(
    inet=lambda: socket.create_connection(("127.0.0.1", port), 1),
    unix=lambda: socket.socket(socket.AF_UNIX).connect(path),
    datagram=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    netlink=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    pair=lambda: socket.socketpair(socket.AF_UNIX)[0].connect(path),
    bound=lambda: socket.socketpair(socket.AF_UNIX)[0].bind("mine"),
    name=lambda: socket.getaddrinfo("example.com", 80),
    url=lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1),
)
""", port=inet.getsockname()[1], path=str(theirs / "socket")) == "[]"  # fmt: skip
        for server in (inet, named):
            with pytest.raises(BlockingIOError):
                server.accept()


def test_huge_output_is_read_and_dropped(sandbox: Sandbox) -> None:
    source = "def f():\n    for i in range(20): print('x' * 1_000_000)\n    return 1"
    outcome = sandbox.run(source, "assert f() == 1", Limits(output_bytes=1000))
    assert outcome.passed
    assert outcome.output == "x" * 1000
    endless = sandbox.run("while True: print('x' * 100_000)", "f", SHORT)
    assert endless.verdict == "timed_out"
    assert len(endless.output) == SHORT.output_bytes


def test_nothing_is_inherited(anyones: Any) -> None:
    allowed = {
        "HOME", "LANG", "LC_CTYPE", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "PATH", "PYTHONHASHSEED", "TMPDIR",
    }  # fmt: skip
    assert set(eval(report(anyones, "return sorted(os.environ)"))) <= allowed
    assert report(anyones, "return sys.argv") == "['candidate']"
    kinds = eval(report(anyones, """
import stat
found = []
for fd in range(1024):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    found.append("socket" if stat.S_ISSOCK(mode) else "pipe" if stat.S_ISFIFO(mode) else
                 "null" if fd == 0 or os.path.samestat(os.fstat(fd), os.stat("/dev/null")) else fd)
return found
"""))  # fmt: skip
    assert kinds[:3] == ["null", "pipe", "pipe"]
    assert kinds.count("socket") == 1
    assert set(kinds) == {"null", "pipe", "socket"}


def test_runs_do_not_meet(sandbox: Sandbox) -> None:
    writes = "open('left', 'w').write('x')\nimport builtins, json\njson.left = builtins.left = 1"
    assert sandbox.run(writes, "").passed
    looks = """
import builtins, json, os
def f(): return os.listdir("."), hasattr(json, "left"), hasattr(builtins, "left")
"""
    assert sandbox.run(looks, "assert f() == ([], False, False), f()").detail == ""
