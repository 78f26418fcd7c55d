"""A device's network changes, or has no multicast: scenarios 26 and 27."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from tools.acceptance.field import Field, Station, alive, pause, until
from tools.acceptance.verdict import Setting, Verdict
from tools.chaos.rig import Options, Rig
from tools.racklab.lab import NETWORK

REJOIN_LIMIT_S = 15.0
JOIN_LIMIT_S = 5.0
DOWN_S = 60.0
CALM_S = 20.0
LOOK_S = 6.0
WAIT_S = 60.0
JOINS = 5
MESH = "home"
PORT = 7766


def change(options: Options, verdict: Verdict) -> None:
    """Another address; an interface down for 60 s; a bridge of containers; Wi-Fi to Ethernet: scenario 26."""
    with Rig(replace(options, devices=4, origins=1), verdict.scenario) as rig:
        rig.serve()
        victim = rig.stations[0]
        device = victim.rack
        assert device is not None
        own = victim.look()["self"]

        took_s = _rejoined(rig, own, lambda: device.readdress(f"{NETWORK}.110"), device_host=f"{NETWORK}.110")
        _note(verdict, "renewed_address", took_s)
        _announced(rig, verdict, "renewed_address", f"{NETWORK}.110")

        device.take_down()
        pause(DOWN_S)
        _note(verdict, "down_for_60_s", _rejoined(rig, own, device.bring_up, device_host=device.address))
        _announced(rig, verdict, "down_for_60_s", device.address)

        before = victim.log.count("network_changed")
        device.add_bridge()
        until(lambda: victim.log.count("network_changed") > before, WAIT_S, "the bridge is noticed", rig)
        steady = _steady(rig, own, f"{device.address}:")
        verdict.check(steady, "a bridge of containers moved the device or took it from a view")

        device.add_cable(f"{NETWORK}.150")
        pause(CALM_S / 2)
        _note(verdict, "wifi_to_ethernet", _rejoined(rig, own, device.take_down, device_host=f"{NETWORK}.150"))
        _announced(rig, verdict, "wifi_to_ethernet", f"{NETWORK}.150")

        counts = rig.end()
        verdict.figures |= counts
        for key in ("lost", "doubled", "wrong"):
            verdict.check(counts[key] == 0, f"{counts[key]} {key}")


def without_multicast(options: Options, verdict: Verdict) -> None:
    """Nodes that hear no multicast join by `--peer`, and after a restart of all by the peers they remember: 27."""
    setting = Setting(options.model, options.model, "", options.logs, options.seed, options.cpu, options.rate)
    named: list[float] = []
    remembered: list[float] = []
    with Field(setting, verdict.scenario, count=3) as field:
        field.rack.stop_multicast()
        first, second, third = field.stations
        first.start()
        until(lambda: first.joined, WAIT_S, "the first joins", field)
        assert first.rack is not None
        for station in (second, third):
            station.options = ("--peer", f"{first.rack.address}:{PORT}")
            station.start()
            until(lambda station=station: station.joined, WAIT_S, "it joins", field)  # type: ignore[misc]
            here = [one for one in field.stations if one.starts]
            named.append(_met(field, here))
        until(lambda: all(_remembers(station) for station in field.stations), WAIT_S, "all are written down", field)
        for _ in range(options.repeat or JOINS):
            for station in field.stations:
                station.kill()
                station.options = ()
            for station in field.stations:
                station.start()
            until(field.all_joined, WAIT_S, "all join", field)
            remembered.append(_met(field, field.stations))
            pause(1.0)
    verdict.figures |= {"joined_by_peer_s": named, "joined_by_memory_s": remembered}
    verdict.check(max(named) <= JOIN_LIMIT_S, f"joined by --peer after {max(named)} s")
    verdict.check(max(remembered) <= JOIN_LIMIT_S, f"joined by memory after {max(remembered)} s")


def _met(field: Field, stations: list[Station]) -> float:
    """The seconds from now, when the last has said that it joined, until each lists all of these."""

    def met() -> bool:
        return all(len(alive(station.look())) == len(stations) for station in stations)

    return round(until(met, WAIT_S, "all list each other", field), 2)


def _remembers(station: Station) -> bool:
    path = station.folder / "peers.json"
    return path.is_file() and len(json.loads(path.read_text())["peers"]) == 2


def _rejoined(rig: Rig, own: str, deed: Callable[[], None], device_host: str) -> float:
    """Do something to a device's network; the seconds until everybody's view has it alive at an address, and agrees."""
    began = time.monotonic()
    deed()

    def back() -> bool:
        views = [station.look() for station in rig.stations]
        rows = [row for view in views for row in view.get("members", ()) if row["id"] == own]
        there = [row["state"] == "alive" and row["address"].startswith(f"{device_host}:") for row in rows]
        return len(rows) == len(views) and all(there) and all(len(alive(view)) == len(views) for view in views)

    until(back, WAIT_S, f"the device is back at {device_host}", rig)
    return round(time.monotonic() - began, 2)


def _steady(rig: Rig, own: str, address: str) -> bool:
    """Whether a device stays alive at its address in every view for a while."""
    end = time.monotonic() + CALM_S
    while time.monotonic() < end:
        for station in rig.stations:
            rows = [row for row in station.look().get("members", ()) if row["id"] == own]
            if any(row["state"] != "alive" or not row["address"].startswith(address) for row in rows):
                return False
    return True


def _announced(rig: Rig, verdict: Verdict, what: str, host: str) -> None:
    """Check that mDNS tells of the address, as seen from another device."""
    command = [sys.executable, "-m", "tools.chaos.mdns", MESH, str(LOOK_S)]
    observer = rig.stations[1].rack
    assert observer is not None
    process = observer.spawn(command, {}, subprocess.PIPE, limited=False)
    out, _ = process.communicate(timeout=WAIT_S)
    hosts = sorted({place[0] for place in json.loads(out)})
    verdict.check(host in hosts, f"{what}: mDNS tells of {', '.join(hosts)}, not of {host}")


def _note(verdict: Verdict, what: str, took_s: float) -> None:
    verdict.figures[f"{what}_rejoined_s"] = took_s
    print(f"  {what}: rejoined after {took_s} s", flush=True)
    verdict.check(took_s <= REJOIN_LIMIT_S, f"{what}: rejoined after {took_s} s")
