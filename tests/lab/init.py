"""PID 1 of a lab host: gives the host its own view of the file system, then starts processes on request.

Runs as a file of its own (standard library only) inside fresh mount, pid, net, uts and ipc namespaces:
`python -S init.py CONTROL_FD SPEC`. The root becomes an overlay over the machine's root with its writable
part on a tmpfs, so nothing a test does in a host reaches the machine's disk.

One JSON message a request arrives on the control socket (SEQPACKET), with file descriptors attached:
    {"spawn": {"argv", "env", "cwd"}}  + [reply, stdin, stdout, stderr]
        -> reply {"pid"} + [pidfd], then {"status"} (as waitpid(2) has it) when the process ends
    {"pidfd": PID}                     + [reply] -> reply {"pid"} + [pidfd] or {"error"}

When the control socket closes, or its parent dies (setpriv --pdeathsig), this process ends, and the kernel
kills every process of the host with it (pid_namespaces(7)). It does no networking.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
STAGING = "/proc"  # exists everywhere, and nothing below it is wanted before the new root has its own
UPPER = "/run/lab/upper"  # the writable part of the overlay, kept visible: what has the host changed?

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    if libc.mount(source.encode(), target.encode(), fstype.encode(), flags, data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"mount {fstype} {source} on {target} ({data})")


def bind(source: str, target: str, flags: int = 0) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    mount(source, target, flags=MS_BIND | MS_REC)
    if flags:
        mount("", target, flags=MS_BIND | MS_REMOUNT | flags)


def take_root(tmpfs: list[str], read_only: list[str]) -> None:
    """Make an overlay of the machine's root the root, with fresh kernel file systems and `tmpfs` folders."""
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    mount("lab", STAGING, "tmpfs", data="mode=755")
    upper, work, root = (f"{STAGING}/{name}" for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        Path(folder).mkdir()
    mount("lab", root, "overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    mount("sysfs", f"{root}/sys", "sysfs")  # a sysfs shows the network namespace it was mounted in
    if Path("/sys/fs/cgroup").is_dir():
        bind("/sys/fs/cgroup", f"{root}/sys/fs/cgroup")
    if Path(f"{root}/sys/fs/bpf").is_dir():
        mount("bpf", f"{root}/sys/fs/bpf", "bpf")
    bind("/dev", f"{root}/dev")
    for folder in ("/dev/shm", *tmpfs):
        Path(root + folder).mkdir(parents=True, exist_ok=True)
        mount(
            "lab", root + folder, "tmpfs", data="mode=1777" if folder in ("/tmp", "/dev/shm") else "mode=755"
        )
    for folder in read_only:
        bind(folder, root + folder, MS_RDONLY)
    bind(upper, root + UPPER)
    os.chdir(root)
    if libc.pivot_root(b".", b"."):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "pivot_root")
    libc.umount2(b".", MNT_DETACH)
    os.chdir("/")
    mount("proc", "/proc", "proc")


def spawn(argv: list[str], env: dict[str, str], cwd: str, stdio: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for target, source in enumerate(stdio):
            os.dup2(source, target)
        os.closerange(3, 4096)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def answer(reply: socket.socket, message: dict[str, object], fds: list[int] = []) -> None:  # noqa: B006 (never written)
    # The one who asked may no longer be interested.
    with contextlib.suppress(OSError):
        socket.send_fds(reply, [json.dumps(message).encode()], fds)


def serve(control: socket.socket) -> None:
    children: dict[int, socket.socket] = {}
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        while True:  # orphans are reaped too: this is PID 1
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in children:
                reply = children.pop(pid)
                answer(reply, {"status": status})
                reply.close()
        if control.fileno() not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not data:
            return
        request = json.loads(data)
        reply = socket.socket(fileno=fds[0])
        if "spawn" in request:
            pid = spawn(**request["spawn"], stdio=fds[1:])
            for fd in fds[1:]:
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            answer(reply, {"pid": pid}, [pidfd])
            os.close(pidfd)
            children[pid] = reply
            continue
        try:
            pidfd = os.pidfd_open(request["pidfd"])
        except OSError as error:
            answer(reply, {"error": errno.errorcode[error.errno or 0]})
        else:
            answer(reply, {"pid": request["pidfd"]}, [pidfd])
            os.close(pidfd)
        reply.close()


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    spec = json.loads(sys.argv[2])
    os.umask(0o022)
    take_root(spec["tmpfs"], spec["read_only"])
    socket.sethostname(spec["name"])
    control.send(b"ready")
    serve(control)


if __name__ == "__main__":
    main()
