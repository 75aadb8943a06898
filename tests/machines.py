"""
Machines on a switch, made of Linux namespaces: each has an address, a host name, processes, a `/tmp` and a `/dev/shm`
of its own, and can be lost or cut off as a real one is.

Nothing of this outlives the program that makes it, however that ends: a machine is there as long as its first process,
and that one ends with the pipe that it reads from.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEMPORARY = "/tmp"  # noqa: S108 - every machine has its own
_TOOLS = ("ip", "mount", "nsenter", "unshare")
_OWN = ("--net", "--mount", "--pid", "--uts")
_SUBNET = "10.77.0"
_BEGIN = """
set -e
name=$1 address=$2
shift 2
hostname "$name"
ip link set lo up
mount -t tmpfs tmp /mnt
chmod 1777 /mnt
for kept in "$@"; do
  mkdir -p "/mnt/${kept#/tmp/}"
  mount --rbind "$kept" "/mnt/${kept#/tmp/}"
done
mount --move /mnt /tmp
mount -t tmpfs shm /dev/shm
mkdir -p /tmp/home /tmp/etc
echo "127.0.0.1 localhost" > /tmp/etc/hosts
echo "$address $name" >> /tmp/etc/hosts
: > /tmp/etc/resolv.conf
for file in hosts resolv.conf; do mount --bind /tmp/etc/$file /etc/$file; done
echo begun
cat
exit
"""
"""The first process of a machine; of the `/tmp` below it sees the folders that it is given and no others."""


class Machine:
    """
    A machine called `name`. It sees the folders `seen` of the machine below, which is how folders are shared.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, name: str, address: str, seen: tuple[Path, ...]) -> None:
        self.name, self.address = name, address
        self._programs: list[subprocess.Popen[str]] = []
        needed = {path.resolve() for path in (*seen, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))}
        given = sorted(str(path) for path in needed if path.is_relative_to(TEMPORARY))
        first = ("sh", "-c", _BEGIN, "sh", name, address, *given)
        self._first = subprocess.Popen(
            ["unshare", *_OWN, "--fork", "--mount-proc", "--kill-child", *first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "begun\n":
            raise OSError(self._first.communicate()[1])

    @property
    def pid(self) -> int:
        return self._first.pid

    def start(self, *command: str, log: Path | int = subprocess.DEVNULL, **environment: str) -> subprocess.Popen[str]:
        """Starts a program there; what it writes goes to the end of `log`, or into a pipe."""
        processes = f"--pid=/proc/{self.pid}/ns/pid_for_children"
        own = {"HOME": f"{TEMPORARY}/home", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with ExitStack() as stack:
            program = subprocess.Popen(
                ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", processes, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(log.open("a")) if isinstance(log, Path) else log,
                stderr=subprocess.STDOUT,
                text=True,
                cwd="/",
                env=own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | environment,
            )
        self._programs.append(program)
        return program

    def lose(self) -> None:
        """Everything that runs there is killed at once."""
        self._first.kill()
        self._first.communicate()
        for program in self._programs:
            program.wait()
            if program.stdout is not None:
                program.stdout.close()


class Switch:
    """Where machines are plugged in. A context manager, after which there are none left."""

    def __init__(self) -> None:
        self._stack, self._numbers = ExitStack(), itertools.count(1)

    def __enter__(self) -> Switch:
        with self._stack:
            self._middle = self._begun("switch", "127.0.0.1")
            _ip(self._middle, "link", "add", "middle", "type", "bridge")
            _ip(self._middle, "link", "set", "middle", "up")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def machine(self, name: str, *seen: Path) -> Machine:
        """A new one, at an address of its own. Raises `OSError` when it cannot be made."""
        machine = self._begun(name, f"{_SUBNET}.{next(self._numbers)}", *seen)
        port = _port(machine)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        _ip(self._middle, "link", "add", port, *cable)
        _ip(self._middle, "link", "set", port, "master", "middle", "up")
        _ip(machine, "address", "add", f"{machine.address}/24", "dev", "eth0")
        _ip(machine, "link", "set", "eth0", "up")
        _ip(machine, "route", "add", "default", "dev", "eth0")
        return machine

    def cut(self, machine: Machine) -> None:
        """Nothing reaches it any more and nothing comes from it, and nobody is told."""
        _ip(self._middle, "link", "set", _port(machine), "down")

    def join(self, machine: Machine) -> None:
        _ip(self._middle, "link", "set", _port(machine), "up")

    def _begun(self, name: str, address: str, *seen: Path) -> Machine:
        machine = Machine(name, address, seen)
        self._stack.callback(machine.lose)
        return machine


@cache
def why_not() -> str:
    """What keeps this machine from making others; nothing where it can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "making machines of namespaces takes root"
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"making machines of namespaces takes {', '.join(lacking)}"
    try:
        with Switch() as switch:
            switch.machine("probe")
    except OSError as error:
        return f"no machines can be made of namespaces here: {error}"
    return ""


def _port(machine: Machine) -> str:
    return f"port{machine.address.rpartition('.')[2]}"


def _ip(machine: Machine, *arguments: str) -> None:
    command = ["nsenter", f"--target={machine.pid}", "--net", "ip", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {said.stderr}")
