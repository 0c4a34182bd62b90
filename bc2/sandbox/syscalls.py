"""Which system calls a program may make: a seccomp filter, as the kernel wants it.

An allow list: a call that Linux gets tomorrow is refused. Refused are above all new processes
and programs (fork, execve), sockets, signals to others, mounts, namespaces, ptrace, keys, bpf,
io_uring, shared memory, and what Landlock leaves open: owners, modes and times of files.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

_NAMES = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat close
close_range stat fstat lstat newfstatat statx access faccessat faccessat2 lseek mmap mprotect
munmap mremap madvise brk mlock munlock rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
rt_sigtimedwait rt_sigsuspend sigaltstack pipe pipe2 dup dup2 dup3 select pselect6 poll ppoll
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
timerfd_create timerfd_settime timerfd_gettime sched_yield sched_getaffinity sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min nanosleep clock_nanosleep
clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm pause timer_create
timer_settime timer_gettime timer_getoverrun timer_delete getpid getppid gettid getuid geteuid
getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getrlimit getrusage uname
sysinfo getcpu getpriority capget exit exit_group futex set_robust_list get_robust_list
set_tid_address rseq membarrier arch_prctl restart_syscall getrandom getcwd chdir fchdir getdents
getdents64 readlink readlinkat statfs fstatfs mkdir mkdirat rmdir unlink unlinkat rename renameat
renameat2 creat truncate ftruncate fallocate fsync fdatasync fadvise64 umask copy_file_range
sendfile recvfrom sendto recvmsg sendmsg shutdown getsockopt getsockname getpeername wait4 waitid
"""
ALLOWED = tuple(_NAMES.split())

_X86_64 = {
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295,
    "pwritev": 296, "preadv2": 327, "pwritev2": 328, "open": 2, "openat": 257, "close": 3,
    "close_range": 436, "stat": 4, "fstat": 5, "lstat": 6, "newfstatat": 262, "statx": 332,
    "access": 21, "faccessat": 269, "faccessat2": 439, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "mremap": 25, "madvise": 28, "brk": 12, "mlock": 149, "munlock": 150,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "pipe": 22, "pipe2": 293,
    "dup": 32, "dup2": 33, "dup3": 292, "select": 23, "pselect6": 270, "poll": 7, "ppoll": 271,
    "epoll_create": 213, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232,
    "epoll_pwait": 281, "epoll_pwait2": 441, "eventfd": 284, "eventfd2": 290,
    "timerfd_create": 283, "timerfd_settime": 286, "timerfd_gettime": 287, "sched_yield": 24,
    "sched_getaffinity": 204, "sched_getparam": 143, "sched_getscheduler": 145,
    "sched_get_priority_max": 146, "sched_get_priority_min": 147, "nanosleep": 35,
    "clock_nanosleep": 230, "clock_gettime": 228, "clock_getres": 229, "gettimeofday": 96,
    "time": 201, "times": 100, "getitimer": 36, "setitimer": 38, "alarm": 37, "pause": 34,
    "timer_create": 222, "timer_settime": 223, "timer_gettime": 224, "timer_getoverrun": 225,
    "timer_delete": 226, "getpid": 39, "getppid": 110, "gettid": 186, "getuid": 102,
    "geteuid": 107, "getgid": 104, "getegid": 108, "getresuid": 118, "getresgid": 120,
    "getgroups": 115, "getpgrp": 111, "getpgid": 121, "getsid": 124, "getrlimit": 97,
    "getrusage": 98, "uname": 63, "sysinfo": 99, "getcpu": 309, "getpriority": 140, "capget": 125,
    "exit": 60, "exit_group": 231, "futex": 202, "set_robust_list": 273, "get_robust_list": 274,
    "set_tid_address": 218, "rseq": 334, "membarrier": 324, "arch_prctl": 158,
    "restart_syscall": 219, "getrandom": 318, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "getdents": 78, "getdents64": 217, "readlink": 89, "readlinkat": 267, "statfs": 137,
    "fstatfs": 138, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "unlink": 87, "unlinkat": 263,
    "rename": 82, "renameat": 264, "renameat2": 316, "creat": 85, "truncate": 76, "ftruncate": 77,
    "fallocate": 285, "fsync": 74, "fdatasync": 75, "fadvise64": 221, "umask": 95,
    "copy_file_range": 326, "sendfile": 40, "recvfrom": 45, "sendto": 44, "recvmsg": 47,
    "sendmsg": 46, "shutdown": 48, "getsockopt": 55, "getsockname": 51, "getpeername": 52,
    "wait4": 61, "waitid": 247, "clone": 56, "clone3": 435, "kill": 62, "tgkill": 234,
    "prlimit64": 302, "socketpair": 53, "fcntl": 72, "ioctl": 16, "prctl": 157, "seccomp": 317,
    "mount": 165, "umount2": 166, "pivot_root": 155, "mount_setattr": 442, "unshare": 272,
    "capset": 126, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}  # fmt: skip

_AARCH64 = {
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68,
    "preadv": 69, "pwritev": 70, "preadv2": 286, "pwritev2": 287, "openat": 56, "close": 57,
    "close_range": 436, "fstat": 80, "newfstatat": 79, "statx": 291, "faccessat": 48,
    "faccessat2": 439, "lseek": 62, "mmap": 222, "mprotect": 226, "munmap": 215, "mremap": 216,
    "madvise": 233, "brk": 214, "mlock": 228, "munlock": 229, "rt_sigaction": 134,
    "rt_sigprocmask": 135, "rt_sigreturn": 139, "rt_sigpending": 136, "rt_sigtimedwait": 137,
    "rt_sigsuspend": 133, "sigaltstack": 132, "pipe2": 59, "dup": 23, "dup3": 24, "pselect6": 72,
    "ppoll": 73, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "epoll_pwait2": 441,
    "eventfd2": 19, "timerfd_create": 85, "timerfd_settime": 86, "timerfd_gettime": 87,
    "sched_yield": 124, "sched_getaffinity": 123, "sched_getparam": 121, "sched_getscheduler": 120,
    "sched_get_priority_max": 125, "sched_get_priority_min": 126, "nanosleep": 101,
    "clock_nanosleep": 115, "clock_gettime": 113, "clock_getres": 114, "gettimeofday": 169,
    "times": 153, "getitimer": 102, "setitimer": 103, "timer_create": 107, "timer_settime": 110,
    "timer_gettime": 108, "timer_getoverrun": 109, "timer_delete": 111, "getpid": 172,
    "getppid": 173, "gettid": 178, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177,
    "getresuid": 148, "getresgid": 150, "getgroups": 158, "getpgid": 155, "getsid": 156,
    "getrlimit": 163, "getrusage": 165, "uname": 160, "sysinfo": 179, "getcpu": 168,
    "getpriority": 141, "capget": 90, "exit": 93, "exit_group": 94, "futex": 98,
    "set_robust_list": 99, "get_robust_list": 100, "set_tid_address": 96, "rseq": 293,
    "membarrier": 283, "restart_syscall": 128, "getrandom": 278, "getcwd": 17, "chdir": 49,
    "fchdir": 50, "getdents64": 61, "readlinkat": 78, "statfs": 43, "fstatfs": 44, "mkdirat": 34,
    "unlinkat": 35, "renameat": 38, "renameat2": 276, "truncate": 45, "ftruncate": 46,
    "fallocate": 47, "fsync": 82, "fdatasync": 83, "fadvise64": 223, "umask": 166,
    "copy_file_range": 285, "sendfile": 71, "recvfrom": 207, "sendto": 206, "recvmsg": 212,
    "sendmsg": 211, "shutdown": 210, "getsockopt": 209, "getsockname": 204, "getpeername": 205,
    "wait4": 260, "waitid": 95, "clone": 220, "clone3": 435, "kill": 129, "tgkill": 131,
    "prlimit64": 261, "socketpair": 199, "fcntl": 25, "ioctl": 29, "prctl": 167, "seccomp": 277,
    "mount": 40, "umount2": 39, "pivot_root": 41, "mount_setattr": 442, "unshare": 97,
    "capset": 91, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A processor's name for the kernel (AUDIT_ARCH_...) and the numbers of its calls."""

    arch: int
    number: dict[str, int]


MACHINES = {
    "x86_64": Machine(0xC000003E, _X86_64),
    "aarch64": Machine(0xC00000B7, _AARCH64),
}


def this_machine() -> Machine | None:
    """This processor, or None: no table of numbers for it is here."""
    return MACHINES.get(platform.machine())


# Commands of fcntl: duplicates, flags, locks, the size of a pipe. Not F_SETOWN or F_SETSIG:
# they would have the kernel send any signal to any process of the same user.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not TIOCSTI, which types.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_VMA. Not PR_SET_PDEATHSIG.
_PRCTL = (15, 16, 23, 0x53564D41)
_AF_UNIX = 1

_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020000

_KILL_PROCESS = 0x80000000
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16


def _step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _answer(value: int) -> bytes:
    return _step(_RETURN, value)


def _one_of(argument: int, values: tuple[int, ...], mask: int | None = None) -> list[bytes]:
    """Allow the call if the low half of an argument is one of these; EPERM otherwise."""
    steps = [_step(_LOAD, _OFFSET_ARGS + 8 * argument)]  # little-endian: the low half is first
    if mask is not None:
        steps.append(_step(_AND, mask))
    for value in values:
        steps += [_step(_EQUAL, value, 0, 1), _answer(_ALLOW)]
    return [*steps, _answer(_ERRNO | errno.EPERM)]


def seccomp_filter(machine: Machine, pid: int) -> bytes:
    """The filter (an array of sock_filter) for the process with this pid."""
    number = machine.number
    judged = {
        "clone": _one_of(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NEW),
        # Its arguments lie in memory, where no filter looks; glibc then takes clone.
        "clone3": [_answer(_ERRNO | errno.ENOSYS)],
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _one_of(0, (0, pid)),
        "socketpair": _one_of(0, (_AF_UNIX,)),
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "prctl": _one_of(0, _PRCTL),
    }
    steps = [
        _step(_LOAD, _OFFSET_ARCH),
        _step(_EQUAL, machine.arch, 1, 0),
        _answer(_KILL_PROCESS),  # the calls of another architecture have other numbers
        _step(_LOAD, _OFFSET_NUMBER),
    ]
    for name in ALLOWED:
        if name in number:
            steps += [_step(_EQUAL, number[name], 0, 1), _answer(_ALLOW)]
    for name, block in judged.items():
        steps += [_step(_EQUAL, number[name], 0, len(block)), *block]
    return b"".join([*steps, _answer(_ERRNO | errno.EPERM)])
