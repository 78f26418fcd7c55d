"""`tools/rack`: run a command on every virtual device, or once inside an empty lab."""

from __future__ import annotations

import argparse
import os
import sys

from tools.racklab import outer
from tools.racklab.lab import INSIDE, Lab


def main(arguments: list[str] | None = None) -> int:
    """The command line of the rack; its exit status is that of the first command that failed."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    command = [word for word in options.command if word != "--"] if options.command[:1] == ["--"] else options.command
    if not command:
        _parser().error("a command to run is missing, after --")
    if options.verb == "lab":
        return outer.enter(command, quota=False) if options.rootless else outer.enter(command)
    if os.environ.get(INSIDE) is None:
        own = [sys.executable, "-m", "tools.racklab", *given]
        return outer.enter(own) if options.cpu else outer.enter(own, quota=False)
    shaped = {"rate": options.rate, "cpu": options.cpu, "loss": options.loss}
    with Lab(options.count, **shaped, memory_bytes=round(options.memory_mb * 1e6)) as lab:
        processes = [device.spawn(command) for device in lab.devices]
        codes = [process.wait() for process in processes]
    return next((code for code in codes if code), 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/rack", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a command on every device (RACK_INDEX and RACK_ADDRESS tell them apart)")
    run.add_argument("-n", dest="count", type=int, default=3, help="devices")
    run.add_argument("--rate", default="", help="of every cable, as tc says it: 100mbit")
    run.add_argument("--cpu", type=float, default=0.0, help="share of one processor for each device")
    run.add_argument("--loss", type=float, default=0.0, help="share of packets dropped on every cable, 0 to 1")
    run.add_argument("--memory-mb", type=float, default=0.0, help="what each process may allocate (RLIMIT_DATA)")
    lab = verbs.add_parser("lab", help="run a command once inside; it makes its devices with tools.racklab.lab.Lab")
    lab.add_argument("--rootless", action="store_true", help="without root, and so without shares of a processor")
    for verb in (run, lab):
        verb.add_argument("command", nargs=argparse.REMAINDER)
    return parser


if __name__ == "__main__":
    sys.exit(main())
