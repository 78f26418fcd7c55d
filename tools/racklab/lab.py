"""The rack from the inside: devices on a bridge, their wires and processes. Runs only within `tools.racklab.outer`."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tools.racklab import cgroups
from tools.racklab.cgroups import CpuGroups

INSIDE = "MESHLAB_INSIDE"
ROOTLESS = "MESHLAB_ROOTLESS"
NETWORK = "10.77.0"
FIRST_HOST = 10
GRACE_S = 3.0
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000


class Device:
    """One virtual device: a network namespace with eth0, an address, a share of a processor."""

    def __init__(self, index: int, lab: Lab) -> None:
        """Made by `Lab`."""
        self.index = index
        self.name = f"d{index:02d}"
        self.address = f"{NETWORK}.{FIRST_HOST + index}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.limits: dict[int, int] = dict(lab.limits)
        self._lab = lab
        self._procs = lab.groups.add(self.name, lab.cpu) if lab.groups is not None else None

    def spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
        errors: IO[bytes] | int | None = None,
        *,
        limited: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a process on the device; it dies with the rack.

        An observer is not `limited`: it stands on the device's network without eating of its processor's share.
        """
        own = {"RACK_INDEX": str(self.index), "RACK_ADDRESS": self.address}
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            command,
            env={**os.environ, **single, **own, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            preexec_fn=self._enter if limited else self._visit,  # noqa: PLW1509 - the rack has one thread
        )
        self.processes.append(process)
        return process

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread on this device's network: sockets it opens now stay there."""
        with open("/proc/thread-self/ns/net", "rb") as home:
            self._set_network()
            try:
                yield
            finally:
                _call("setns", home.fileno(), CLONE_NEWNET)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """This process in the device's share of a processor: what it computes now is measured as the device is."""
        if self._procs is None:
            yield
            return
        home = cgroups.own_procs()
        self._procs.write_text("0")
        try:
            yield
        finally:
            home.write_text("0")

    def unplug(self) -> None:
        """Take the cable out at the switch."""
        _ip(f"link set {self.port} down")

    def plug(self) -> None:
        """Put the cable back."""
        _ip(f"link set {self.port} up")

    def readdress(self, address: str) -> None:
        """Give the device another address, as a router does that forgot it; the one it had is gone."""
        _ip(f"-n {self.name} address del {self.address}/24 dev eth0")
        _ip(f"-n {self.name} address add {address}/24 dev eth0")
        _ip(f"-n {self.name} route replace 224.0.0.0/4 dev eth0")
        self.address = address

    def take_down(self) -> None:
        """Switch the device's own interface off."""
        _ip(f"-n {self.name} link set eth0 down")

    def bring_up(self) -> None:
        """Switch it on again."""
        _ip(f"-n {self.name} link set eth0 up")
        _ip(f"-n {self.name} route replace 224.0.0.0/4 dev eth0")

    def add_cable(self, address: str) -> None:
        """A second cable to the same switch, with an address of its own, as of Wi-Fi beside Ethernet."""
        _ip(f"link add q{self.index} type veth peer name eth1 netns {self.name}")
        _ip(f"link set q{self.index} master br0 up")
        _ip(f"-n {self.name} address add {address}/24 dev eth1")
        _ip(f"-n {self.name} link set eth1 up")

    def add_bridge(self) -> None:
        """A network of containers appears on the device: nobody else can reach it."""
        _ip(f"-n {self.name} link add docker0 type bridge")
        _ip(f"-n {self.name} address add 172.17.0.1/16 dev docker0")
        _ip(f"-n {self.name} link set docker0 up")

    def part_from(self, other: Device) -> None:
        """Nothing passes between the two any more, though both reach everybody else: each mistakes the other."""
        for near, far in ((self, other), (other, self)):
            _ip(f"-n {near.name} neigh replace {far.address} lladdr 02:00:00:00:00:ee dev eth0 nud permanent")

    def meet_again(self, other: Device) -> None:
        """They find each other again."""
        for near, far in ((self, other), (other, self)):
            _ip(f"-n {near.name} neigh del {far.address} dev eth0")

    def limit_cpu(self, cpu: float) -> None:
        """Change the device's share of a processor; 0 lifts the limit."""
        if self._lab.groups is not None:
            self._lab.groups.limit(self.name, cpu)

    def mute(self) -> None:
        """Drop everything the device sends; it still hears. `shape` ends it."""
        self._drop(("ip", "netns", "exec", self.name), "eth0", 1.0)

    def deafen(self) -> None:
        """Drop everything sent to the device; it still speaks. `shape` ends it."""
        self._drop((), self.port, 1.0)

    @property
    def port(self) -> str:
        """The switch's end of the cable."""
        return f"p{self.index}"

    def wire(self) -> None:
        """Make the namespace, its cable to the bridge, its address, its shaping."""
        _ip(f"netns add {self.name}")
        _ip(f"link add {self.port} type veth peer name eth0 netns {self.name}")
        _ip(f"link set {self.port} master br0 up")
        inside = f"-n {self.name}"
        _ip(f"{inside} link set lo up")
        _ip(f"{inside} address add {self.address}/24 dev eth0")
        _ip(f"{inside} link set eth0 up")
        _ip(f"{inside} route add 224.0.0.0/4 dev eth0")
        self.shape(self._lab.rate, self._lab.loss)

    def shape(self, rate: str, loss: float) -> None:
        """Limit both directions to `rate` (tc's words, "" for none) and drop `loss` (0 to 1) of the packets."""
        for prefix, link in (((), self.port), (("ip", "netns", "exec", self.name), "eth0")):
            _quiet([*prefix, "tc", "qdisc", "del", "dev", link, "root"])
            _quiet([*prefix, "tc", "qdisc", "del", "dev", link, "clsact"])
            segments = "1" if rate or loss else "65535"
            _run([*prefix, "ip", "link", "set", link, "gso_max_segs", segments])
            if rate:
                shaped = ["tbf", "rate", rate, "burst", "16kb", "latency", "50ms"]
                _run([*prefix, "tc", "qdisc", "add", "dev", link, "root", *shaped])
            if loss:
                self._drop(prefix, link, loss)

    @staticmethod
    def _drop(prefix: Sequence[str], link: str, loss: float) -> None:
        """Drop a share of what goes out of one end of the cable."""
        _quiet([*prefix, "tc", "qdisc", "del", "dev", link, "clsact"])
        _run([*prefix, "tc", "qdisc", "add", "dev", link, "clsact"])
        _run([*prefix, "tc", "filter", "add", "dev", link, "egress", "bpf", *_dropper(loss), "direct-action"])

    def ask_to_end(self) -> None:
        """Ask the device's processes to end."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def end(self) -> None:
        """Ask the device's processes to end, then make them."""
        self.ask_to_end()
        for process in self.processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _enter(self) -> None:
        """In the new process, before its program: die with the parent, take the device's share, network and name."""
        if self._procs is not None:
            self._procs.write_text("0")
        for what, most in self.limits.items():
            resource.setrlimit(what, (most, most))
        self._visit()

    def _visit(self) -> None:
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        self._set_network()
        _call("unshare", CLONE_NEWUTS)
        socket.sethostname(self.name)

    def _set_network(self) -> None:
        with open(f"/run/netns/{self.name}", "rb") as space:
            _call("setns", space.fileno(), CLONE_NEWNET)


class Lab:
    """A switch and `count` devices; a context manager."""

    def __init__(
        self, count: int, *, rate: str = "", cpu: float = 0.0, loss: float = 0.0, memory_bytes: int = 0
    ) -> None:
        """`rate` as tc says it (`100mbit`), `cpu` as a share of one processor (0: no limit), `loss` from 0 to 1.

        `memory_bytes` bounds what each process on a device may allocate (RLIMIT_DATA; 0: no limit).
        """
        if os.environ.get(INSIDE) is None:
            raise RuntimeError("a lab lives inside the rack: start this with tools/rack")
        if cpu and os.environ.get(ROOTLESS) is not None:
            raise RuntimeError("shares of a processor need root; without it, leave --cpu out")
        self.rate, self.cpu, self.loss = rate, cpu, loss
        self.limits = {resource.RLIMIT_DATA: memory_bytes} if memory_bytes else {}
        self.groups = CpuGroups(os.environ[INSIDE]) if cpu else None
        self._apart: list[Device] = []
        self._count = count
        self.devices: list[Device] = []

    def __enter__(self) -> Self:
        _run(["mount", "--make-rprivate", "/"])
        _run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
        Path("/run/netns").mkdir()
        _ip("link set lo up")
        _switch("br0")
        _ip(f"address add {NETWORK}.1/24 dev br0")
        for index in range(self._count):
            self.devices.append(Device(index, self))
            self.devices[-1].wire()
        return self

    def split(self, devices: Sequence[Device]) -> None:
        """Move devices to a switch of their own: two halves that do not see each other."""
        _switch("br1")
        for device in devices:
            _ip(f"link set {device.port} master br1")
        self._apart = list(devices)

    def heal(self) -> None:
        """Put everybody on one switch again."""
        for device in self._apart:
            _ip(f"link set {device.port} master br0")
        self._apart = []
        _quiet(["ip", "link", "del", "br1"])

    def stop_multicast(self) -> None:
        """From now on the switch passes on no multicast, like many a wireless network."""
        for device in self.devices:
            _ip(f"link set {device.port} type bridge_slave mcast_flood off")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for device in self.devices:
            device.ask_to_end()
        for device in self.devices:
            with suppress(ProcessLookupError):
                device.end()
        for device in self.devices:
            _quiet(["ip", "netns", "del", device.name])
        _quiet(["ip", "link", "del", "br0"])
        _quiet(["ip", "link", "del", "br1"])
        _quiet(["umount", "/run"])
        if self.groups is not None:
            self.groups.close()


def _call(name: str, *arguments: int) -> None:
    """A call of the C library that Python has no name for; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _dropper(loss: float) -> list[str]:
    """A classic BPF program that drops a share of the packets: the kernel here may have no netem."""
    threshold = min(2**32 - 1, int(loss * 2**32))
    return ["bytecode", f"4,32 0 0 4294963256,53 0 1 {threshold},6 0 0 0,6 0 0 2"]


def _switch(name: str) -> None:
    _ip(f"link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
    _ip(f"link set {name} up")


def _ip(words: str) -> None:
    _run(["ip", *words.split()])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"rack: {' '.join(command)}: {done.stderr.strip()}")


def _quiet(command: Sequence[str]) -> None:
    """A deletion of what may not be there."""
    subprocess.run(command, capture_output=True, check=False)
