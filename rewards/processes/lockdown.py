"""Takes from this process, for ever, what a solution under test does not need. Linux on x86-64.

A filter of system calls (seccomp) leaves no way to open a socket, start a process, signal or read another
process, or change any file; it needs no privilege and works in containers. Capabilities are dropped. Where
the kernel has Landlock, files outside the Python installation and the system's folders cannot be read either.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)

# --- seccomp: a program of the kernel's packet filter -----------------------------------------

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in ``struct seccomp_data``; each argument has 8 bytes, the low 4 first."""
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
"""Return values: allow, kill the process, EPERM, ENOSYS (the C library then tries an older call)."""
_X86_64 = 0xC000003E
_NEW_CALLS = 425
"""From this number on calls are unknown, except those in ``_HARMLESS_NEW_CALLS``: io_uring would pass by the
filter, and clone3 and openat2 hide their flags from it."""
_HARMLESS_NEW_CALLS = (436, 439, 441, 449)  # close_range, faccessat2, epoll_pwait2, futex_waitv
_REFUSED_CALLS = (
    # Network: socket connect accept sendto bind listen accept4.
    41, 42, 43, 44, 49, 50, 288,
    # Processes: fork vfork execve execveat ptrace process_vm_* kcmp unshare setns.
    57, 58, 59, 322, 101, 310, 311, 312, 272, 308,
    # Signals: kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal.
    62, 200, 234, 129, 297, 424,
    # Priorities and memory of others: sched_* setpriority ioprio_set migrate_pages move_pages.
    141, 142, 144, 203, 314, 251, 256, 279,
    # Files: truncate rename mkdir rmdir creat link unlink symlink chmod chown mknod utime, their *at forms.
    76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 235, 258, 259, 260, 261, 263, 264,
    265, 266, 268, 280, 316, 188, 189, 190, 197, 198, 199, 285, 303, 304,
    # Memory that outlives the process: shmget msgget semget mq_open.
    29, 68, 64, 240,
    # The machine: mount umount pivot_root chroot swap reboot clocks modules kexec bpf perf keys and the like.
    165, 166, 155, 161, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 164, 227, 305, 159, 246, 320, 313,
    300, 103, 163, 321, 298, 248, 249, 250, 323,
)  # fmt: skip
_OPEN, _OPENAT, _CLONE, _PRLIMIT, _FCNTL, _IOCTL = 2, 257, 56, 302, 72, 16
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
_SET_OWNER = (8, 15, 0x8901, 0x8902)  # they let the kernel send signals to others
_TERMINAL = (0x5412, 0x541C)

_PR_SET_PDEATHSIG, _PR_GET_SECCOMP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 21, 22, 38
_FILTER_MODE = 2

# --- Landlock -----------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ALL_ACCESS = (1 << 13) - 1
"""The rights on files of Landlock's first version, which all later ones have."""
_READ = (1 << 2) | (1 << 3)
_PATH_BENEATH = 1
_CAPSET, _CAPABILITY_VERSION = 126, 0x20080522


def missing_isolation() -> str:
    """Returns why solutions cannot be confined on this machine; an empty string if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"this is {sys.platform} on {platform.machine()}"
    if _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "its kernel has no seccomp"
    return ""


def has_landlock() -> bool:
    """Returns True if the kernel can restrict which files are read."""
    return _libc.syscall(_CREATE_RULESET, None, 0, 1) > 0


def lock_down(*, memory_bytes: int, cpu_seconds: int, parent: int) -> None:
    """Confines this process. There is no way back, and children and threads inherit it.

    Raises:
        OSError: If the kernel refuses a part that is required. Nothing untrusted may run then.
    """
    os.setsid()
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _drop_capabilities()
    if has_landlock():
        _allow_reading([sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc", "/dev"])
    _filter_calls()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _drop_capabilities() -> None:
    """Leaves root nothing but the ownership of its files; no-op for other users."""
    header = ctypes.create_string_buffer(struct.pack("II", _CAPABILITY_VERSION, 0))
    _check(_libc.syscall(_CAPSET, header, ctypes.create_string_buffer(24)))


def _allow_reading(folders: list[str]) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("Q", _ALL_ACCESS), 8)
    rules = _check(_libc.syscall(_CREATE_RULESET, attributes, 8, 0))
    for folder in folders:
        if not os.path.isdir(folder):
            continue
        descriptor = os.open(folder, os.O_PATH)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", _READ, descriptor), 12)
        _check(_libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
        os.close(descriptor)
    _check(_libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _filter_calls() -> None:
    program = _program()
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    pointer = ctypes.create_string_buffer(
        struct.pack("H6xQ", len(program), ctypes.addressof(code)), 16
    )  # struct sock_fprog
    _check(_libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, pointer, 0, 0))


def _program() -> list[tuple[int, int, int, int]]:
    """Returns the filter: (code, jump if true, jump if false, operand) per instruction."""
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in _HARMLESS_NEW_CALLS:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [(_AT_LEAST, 0, 1, _NEW_CALLS), (_RETURN, 0, 0, _UNKNOWN)]
    for number in _REFUSED_CALLS:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    program += _on_argument(_OPEN, 1, [(_ANY_BIT, 0, 1, _WRITING), (_RETURN, 0, 0, _REFUSE)])
    program += _on_argument(_OPENAT, 2, [(_ANY_BIT, 0, 1, _WRITING), (_RETURN, 0, 0, _REFUSE)])
    program += _on_argument(_CLONE, 0, [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _REFUSE)])
    program += _on_argument(_PRLIMIT, 0, [(_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _REFUSE)])
    for number in (_FCNTL, _IOCTL):
        tests = [
            part
            for value in (*_SET_OWNER, *_TERMINAL)
            for part in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _REFUSE))
        ]
        program += _on_argument(number, 1, tests)
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _on_argument(
    number: int, argument: int, tests: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """Returns a part of the filter: ``tests`` on an argument of one call, which is else allowed."""
    body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
