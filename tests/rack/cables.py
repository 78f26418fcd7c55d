"""Inside the rack: how fast a cable of 10 Mbit/s is, and what comes through one that is out. Run by `test_rack`."""

from __future__ import annotations

import socket
import sys
import threading
import time

from tools.racklab.lab import Device, Lab

SIZE = 1 << 20
CONNECT_S = 0.5
PLUGGED_S = 30.0


def main() -> int:
    """Print the seconds that a mebibyte took, and whether a connection came about plugged, unplugged, plugged again."""
    with Lab(2, rate="10mbit") as lab:
        one, other = lab.devices
        with one.inside():
            server = socket.create_server((one.address, 0))
        port = server.getsockname()[1]
        took_s = _transfer(server, one.address, port, other)
        plugged = _connects(other, one.address, port, PLUGGED_S)
        other.unplug()
        unplugged = _connects(other, one.address, port, CONNECT_S)
        other.plug()
        again = _connects(other, one.address, port, PLUGGED_S)
        server.close()
    sys.stdout.write(f"{took_s:.2f} {plugged} {unplugged} {again}\n")
    return 0


def _transfer(server: socket.socket, host: str, port: int, device: Device) -> float:
    """Seconds for SIZE bytes from a device to the server."""
    with device.inside():
        client = socket.create_connection((host, port), PLUGGED_S)
    accepted, _ = server.accept()
    with client, accepted:
        began = time.monotonic()
        sender = threading.Thread(target=client.sendall, args=(bytes(SIZE),))
        sender.start()
        left = SIZE
        while left:
            left -= len(accepted.recv(1 << 16))
        took_s = time.monotonic() - began
        sender.join()
    return took_s


def _connects(device: Device, host: str, port: int, timeout_s: float) -> bool:
    try:
        with device.inside(), socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
