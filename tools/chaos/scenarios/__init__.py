"""The scenarios by name: each fills a verdict with figures and with the rules that were broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tools.acceptance.verdict import Verdict
from tools.chaos.rig import Options
from tools.chaos.scenarios import clone, cold, deaths, loss, network, plans, requests, sleep

SCENARIOS: Mapping[str, Callable[[Options, Verdict], None]] = {
    "kill": deaths.kill,
    "unplug": deaths.unplug,
    "ingress": requests.ingress,
    "sleep": sleep.sleep,
    "sleep-leader": sleep.sleep_leader,
    "overload": requests.overload,
    "loss": loss.loss,
    "network": network.change,
    "no-multicast": network.without_multicast,
    "clone": clone.clone,
    "cold": cold.cold,
    "uncovered": plans.uncovered,
    "uncovered-leader": plans.uncovered_leader,
    "slow": plans.slow,
    "pair": plans.pair,
}
