"""What this device can do and how busy it is: a small convolution through the real runtime, and the system's word."""

from __future__ import annotations

import base64
import math
import os
import re
import statistics
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshnn.device import runtime
from meshnn.device.ports import fill_zeros, port_of
from meshnn.graph.cost import work_ms

SPEED_UNMEASURED = 0.0
"""The speed of a device that has not measured itself yet."""

WINDOW_S = 0.09
"""How long each of the two probes runs, in seconds."""

_RUNS_MIN = 3
_MACS = 32 * 32 * 64 * 64
_VALUES = 2 * 32 * 32 * 64
_WEIGHTS = 64 * 64 + 64


@dataclass(frozen=True, slots=True)
class Measured:
    """A device's capability: budgets in bytes, speed, cores, numeric class.

    `speed` is work units (`Card.work`, a reference machine's milliseconds) per millisecond: 1.0 is that machine. It is
    the geometric mean of `float_speed` and `integer_speed`, and counts a processor quota in.
    """

    memory_bytes: int
    disk_bytes: int
    speed: float
    float_speed: float
    integer_speed: float
    cores: int
    numeric_class: str


@dataclass(frozen=True, slots=True)
class Busy:
    """What this device is doing now: memory free in the whole machine, processor use since the last call.

    `quota_cores` is the processor time a second that this process may use, infinite without a quota.
    """

    free_bytes: int
    cpu_percent: float
    quota_cores: float


def capability(memory_bytes: int, disk_bytes: int, threads: int = 1) -> Measured:
    """Measure this device with `threads` threads, given its budgets in bytes; NodeError without a runtime.

    Blocks for about 0.2 s: call it in a thread.
    """
    share = min(1.0, cpu_quota_cores() / threads)
    float_speed = share * _speed(_FLOAT32, threads, value_bytes=4)
    integer_speed = share * _speed(_INT8, threads, value_bytes=1)
    speed = math.sqrt(float_speed * integer_speed)
    numeric_class = runtime.numeric_class(threads)
    return Measured(memory_bytes, disk_bytes, speed, float_speed, integer_speed, cores(), numeric_class)


def load() -> Busy:
    """How busy this device is; the processor's use is 0 at the first call."""
    used_percent = float(psutil.cpu_percent(interval=None))
    return Busy(int(psutil.virtual_memory().available), used_percent, cpu_quota_cores())


def on_mains() -> bool:
    """Whether this device runs from the mains, or has no battery at all, as far as the system says."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is None or battery.power_plugged is not False


def cores() -> int:
    """Physical cores that this process may use, at least 1."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))


def cpu_quota_cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processor time a second this process may use, in cores, by the tightest control group; infinite without one.

    A quota is a stutter and not a slow clock: short runs go at full speed and then wait, so it cannot be seen in them.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            bases = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [root / "cpu", root / controllers]
        else:
            continue
        for base in bases:
            folder = base / place.strip("/")
            while folder.is_relative_to(base):
                quota = min(quota, _quota_of(folder))
                folder = folder.parent
    return quota


def _quota_of(folder: Path) -> float:
    """The quota one control group states, in cores: version 2 in one file, version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            words = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [(folder / name).read_text(encoding="ascii").strip() for name in files]
    except OSError:
        return math.inf
    if len(words) != 2 or not all(re.fullmatch(r"\d+", word) for word in words) or int(words[1]) == 0:
        return math.inf
    return int(words[0]) / int(words[1]) or math.inf


def _speed(packed: str, threads: int, value_bytes: int) -> float:
    """Work units per millisecond of a probe's convolution: its median, so that pauses do not count."""
    interpreter = runtime.find().make(model_content=zlib.decompress(base64.b85decode(packed)), num_threads=threads)
    with runtime.hushed():
        interpreter.allocate_tensors()
    fill_zeros(interpreter, [port_of(detail) for detail in interpreter.get_input_details()])
    interpreter.invoke()
    taken_s: list[float] = []
    start = now = time.perf_counter()
    while now - start < WINDOW_S or len(taken_s) < _RUNS_MIN:
        interpreter.invoke()
        before, now = now, time.perf_counter()
        taken_s.append(now - before)
    work = work_ms("CONV_2D", _MACS, _WEIGHTS * value_bytes, _VALUES * value_bytes, integer=value_bytes == 1)
    return work / (statistics.median(taken_s) * 1000)


# Two models of one 1x1 convolution, 32 x 32 pixels, 64 to 64 channels, compressed: kept as bytes, since a device with
# a runtime alone has no schema to write them with. tests/device/test_probe.py reads them back.
_FLOAT32 = (
    "c-rmUtxh9R0EXeOOG5}uNChDX#E89sCfJ1xh|LNFVg<4xAz>3J%>u!WL?RK0N@OKscT<T(A}f)E3t)K9nKQIvF97j1d1pHR=Q$T})+GJ"
    ">zPlkUYfUTaDAR)49El_8$F{UjqaA5ZbzP3vTjDP1^{uMHUM=~j`8ap;s^>;U*u4Cco@qi)^hgghrh6LE9S!M*uIY+O8c>h+sGu(8)FF"
    "j;{^dP1q>>6!`2VLKPx+0_Cg-W7A&qH5+TuNwQ<n<bqaF>Yq$|3n8yeCbjp&}n^gxgFL=$?Zmo1xZw%KNzZMNBFn{Bq)W}9uc*=Cz<w%"
    "KNzZMNBFn{Bq)W}9uc*=Cz<w%KNzZMNBFn{Bq)W}9uc*=Cz<w%KNzZMNBFn{Bq)W}9vPZ05GwaV>z1P7cqG`u%+H`}E+jSu&v$uT9ro$"
    "kMqZI;KIoZzVdHwHmKyT1sm)tk)CJ%GrF4e;4CB!n+pJvrWzV4b8W|%$#qQZwO<(rCwO)Asv@hRV^e#xcBtpJf08F<f*XK!G!y=^xiC8"
    "KS=u`p6h&!Et|Qg*<Ysb6*FV5p9^zSkFI{cekOe9S6}}f%XDtTTuq-%{<(LicSu|"
)

_INT8 = (
    "c-rllJ5K^Z5Xb*_oXF#ZLrz3RLqTalq6IN(D2%bNw6L%uA;AQ}_=v3^#Lr>;JiZ_J!Z#}G?%r+=iP73*E}5H~-TlqZ&R+FT16Z10oB(1"
    "-!-WGIAy_;DkAQ^)u*|KR1Oo6Z&*O{%z6xlz8514`=s{5SE(otTyqP#WIzBl)JHNQRYFyvk-rYAJ9-p3HUf){pAD?Xo!wgtG!QN0f61D"
    "qcaVOEAbO%y{>7n6~%;*@w1QSd!!2}abFu?>9OfbO&6Z|h=3zpOZY;J4i%}TA7UEipe%33mU<eaa&*lMi8t;%g(t#hTm5JO7N+lVTSCg"
    "TYYMwY*F@-rfHh+GlHYSa3S-rMXL*Yb_1HOGSk?pIXYYBMHk%6m(~!Z-L>NY&LX{dn>2tjJs6-jX@QSXNn)+dgB=RXI%$GspRBj(K^Vu"
    "DmMel<*}L7gbM$Zk6oPttNe5*1O04tan=Y9d+hnN8j{5;+Ep7x4QQQwMRkTqb&n{kH4H_Mx1%Ih97(5{}=v#_V@b>d;w(r5c&"
)
