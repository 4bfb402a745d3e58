# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""The process shuts itself in, before it sees the first byte of a disk.

After :func:`seal` it can read and write the descriptors it has, and get
memory; every other system call ends it.  It cannot open a file, make a
socket or a process, or map code.  The parent looks at what the kernel says
of it (``/proc/<pid>/status``) before it sends anything.

Sources: seccomp(2), prctl(2), libseccomp's seccomp_rule_add(3).
"""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_MASKED_EQ = 7
_PROT_EXEC = 4
#: Nothing in this list takes a name of anything.
_CALLS = (
    "read", "write", "close", "lseek", "fstat",
    "brk", "munmap", "mremap", "madvise",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
    "futex", "getrandom", "clock_gettime", "gettid", "getpid",
    "exit", "exit_group", "restart_syscall",
)  # fmt: skip
#: These too, with a third argument (protection) that has no PROT_EXEC.
_MEMORY = ("mmap", "mprotect")


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def seal(user: int, group: int, memory: int, seconds: int) -> None:
    """
    :param user: user id to become where this process is root's.
    :param memory: bytes of address space beyond what there is now.
    :param seconds: of processor time.
    :raises OSError: it did not work; then nothing may be read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    _limits(memory, seconds)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        # the change of user clears it
        _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _filter(seccomp)


def _prctl(libc: ctypes.CDLL, what: int, value: int) -> None:
    if libc.prctl(what, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _limits(memory: int, seconds: int) -> None:
    with open("/proc/self/statm", "rb") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_AS, now + memory),
        (resource.RLIMIT_CPU, seconds),
    ):
        resource.setrlimit(name, (value, value))


def _filter(seccomp: ctypes.CDLL) -> None:
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = (ctypes.c_uint32,)
    add = seccomp.seccomp_rule_add_array
    add.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    )
    seccomp.seccomp_load.argtypes = (ctypes.c_void_p,)
    context = seccomp.seccomp_init(_KILL_PROCESS)
    if not context:
        raise OSError("seccomp_init")
    no_code = _Compare(2, _MASKED_EQ, _PROT_EXEC, 0)
    for name in _CALLS + _MEMORY:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue
        conditions = int(name in _MEMORY)
        if add(context, _ALLOW, number, conditions, ctypes.byref(no_code)):
            raise OSError("seccomp_rule_add")
    if seccomp.seccomp_load(context):
        raise OSError("seccomp_load")
