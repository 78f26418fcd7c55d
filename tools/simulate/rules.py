"""The mutants: each breaks one rule in one line, and must be noticed."""

from __future__ import annotations

from tools.simulate.cluster_rules import CLUSTER
from tools.simulate.mutant import Mutant

LEDGER = "tests/node/test_ledger.py"
PACES = "tests/node/test_paces.py"
LAGS = "tests/node/test_lags.py"
ASSEMBLY = "tests/node/test_assembly.py"
MEMORY = "tests/node/test_assembly_memory.py"
STAGES = "tests/node/test_stages.py"
SHIPMENTS = "tests/plan/test_shipments.py"
PLANS = "tests/node/test_plans.py"
LEADER = "tests/node/test_leader.py"
SHARDS = "tests/node/test_shards.py"
CORE = "tests/node/test_core.py"
CONTACTS = "tests/node/test_contacts.py"


def _node(rule: str, module: str, line: str, broken: str, tests: str) -> Mutant:
    return Mutant(rule, f"meshnn/node/{module}.py", line, broken, tests)


MUTANTS = (
    *CLUSTER,
    _node(
        "one hiccup is no ground to go around anybody",
        "lags",
        "if nobody or (attempt.sent_at < case.found_at and not stuck):",
        "if nobody:",
        LAGS,
    ),
    _node("one late attempt is no ground", "lags", "GENERATIONS = 2", "GENERATIONS = 1", LAGS),
    _node("a suspect whose absence helps nothing is tried once", "lags", "case.tried.add(case.suspect)", "pass", LAGS),
    _node(
        "an answer in time clears those on its way",
        "lags",
        "if case is not None and not attempt.late:",
        "if case is not None and attempt.plan is None:",
        LAGS,
    ),
    _node(
        "an answer in time clears nobody else",
        "lags",
        "case.common = case.common.difference(attempt.devices)",
        "case.common = frozenset()",
        LAGS,
    ),
    _node(
        "a suspect is forgiven",
        "lags",
        "case.suspect, case.until = device, now + AROUND_S",
        "case.suspect, case.until = device, math.inf",
        LAGS,
    ),
    _node(
        "only one that was on the way relapses",
        "lags",
        "relapsed = case.suspect in attempt.devices and",
        "relapsed = case.suspect is not None and",
        LAGS,
    ),
    _node("what lasts becomes usual", "lags", "return [] if case.relapses > RELAPSES else", "return", LAGS),
    _node("load makes nothing late", "doubts", " if beside >= inside)", ")", LEDGER),
    _node(
        "what goes around a slow device need not be loaded for it",
        "chooser",
        "doubted(plan) | slow, on_disk=False)",
        "doubted(plan) | slow)",
        LEDGER,
    ),
    _node(
        "a contingency for another death is no way around a slow device",
        "chooser",
        "return way if not absent or absent in slow or self._doubts.accuses(DeviceId(absent), now) else None",
        "return way",
        LEDGER,
    ),
    _node(
        "late attempts start again as far as the budget goes",
        "ledger",
        "if self._budget.spend(now, forced=False, least=least):",
        "if least:",
        LEDGER,
    ),
    _node(
        "one stuck for longer than anybody waits is ground by itself",
        "ledger",
        "effects = self._on_late(entry, attempt, now, stuck=True) if known else []",
        "effects: list[Effect] = []",
        LEDGER,
    ),
    _node(
        "what was told of an earlier shard is no reading of the next",
        "paces",
        "if row.reading.observed_ms == reading.observed_ms:",
        "if row.reading == reading:",
        PACES,
    ),
    _node("another shard has another best", "paces", "row.best, row.strayed = reading.ratio, 0", "pass", PACES),
    _node("a leader outbids a plan of its own term", "core", "        effects += self._outbid(now)", "", CORE),
    _node(
        "the reporter is gone around where the reported device cannot be",
        "chooser",
        "self._doubted(entry, 1, now), on_disk=on_disk)",
        "self._doubted(entry, 0, now), on_disk=on_disk)",
        LEDGER,
    ),
    _node(
        "an older plan is not prepared",
        "plans",
        "if known is not None and main.epoch < known:",
        "if known is not None and main.epoch == ():",
        PLANS,
    ),
    _node(
        "an older plan is not activated",
        "plans",
        "if current is not None and main.epoch < current.plans.main.epoch:",
        "if current is not None and main.epoch == ():",
        PLANS,
    ),
    _node("a plan for another life is refused", "plans", "if lives - {self._boot}:", "if lives - lives:", PLANS),
    _node(
        "prepared implies servable",
        "plans",
        "entries = [self._active.get(model), self._prepared.get(model)]\n        entries +=",
        "entries = [self._active.get(model)]\n        entries +=",
        PLANS,
    ),
    _node(
        "a replaced plan drains",
        "plans",
        "self._draining[current.plans.main.epoch] = (current, now + DRAIN_S)",
        "pass",
        PLANS,
    ),
    _node("a contingency serves when it is loaded", "plans", "if plan.epoch in entry.ready]", "if plan.epoch]", PLANS),
    _node(
        "what a request waits for waits for nothing but what serves",
        "shards",
        "if wish.pressing and held.level in _PASSING and",
        "if not wish and",
        SHARDS,
    ),
    _node(
        "of two that were asked for the first has the room",
        "plans",
        "place = order.index(plan.epoch) if asked else rank",
        "place = rank",
        PLANS,
    ),
    _node(
        "what requests use makes no room for another contingency",
        "shards",
        "if held.pressing and not wish.pressing and wish.level >= Level.SPARE:",
        "if held.pressing and wish is None:",
        SHARDS,
    ),
    _node(
        "a contingency that is used is said to be",
        "pipeline",
        "if handle is None or passage.epoch.absent:",
        "if handle is None:",
        "tests/node/test_dataplane.py",
    ),
    _node(
        "the remedy for a death is prepared",
        "plans",
        "remedy = any(epoch.absent not in devices for epoch in active.pressing)",
        "remedy = active is None",
        PLANS,
    ),
    _node(
        "what a request waits for goes before a plan that counts on the dead",
        "plans",
        "waits = entry.gentle or self._doomed(entry)",
        "waits = entry.gentle",
        PLANS,
    ),
    _node(
        "a plan made by choice takes no room from what serves or covers",
        "plans",
        "waits = entry.gentle or self._doomed(entry)",
        "waits = self._doomed(entry)",
        PLANS,
    ),
    _node(
        "a plan made by choice waits for what covers it",
        "jobs",
        "return covered.issuperset(set(self.plans.main.devices()) - served.harmful(runs))",
        "return True",
        LEADER,
    ),
    _node(
        "what does not serve any more is not spared",
        "leader",
        "intact = served is not None and whole and everywhere(served.plans.main, served.loaded)",
        "intact = whole",
        LEADER,
    ),
    _node(
        "a choice that failed delays nothing needed",
        "failures",
        "not (needed and row.by_choice)",
        "row.tries > 0",
        LEADER,
    ),
    _node(
        "a gentle plan waits a little once its files are there",
        "jobs",
        "self.settled, self.deadline = True, min(self.deadline, now + wait_s)",
        "self.settled = True",
        LEADER,
    ),
    _node(
        "nothing is moved by choice to who is suspected",
        "jobs",
        "alive[device].state is MemberState.SUSPECT",
        "alive[device].state is MemberState.DEAD",
        LEADER,
    ),
    _node(
        "nothing is moved for a pair of which one is suspected",
        "view",
        "members[device].state is MemberState.ALIVE",
        "members[device].state is not MemberState.DEAD",
        LEADER,
    ),
    _node(
        "who had no link at all accuses nobody",
        "contacts",
        "if now - row.since < SECOND_S}",
        "if now - row.since < 1e9}",
        CONTACTS,
    ),
    _node("a plan serves when all have loaded it", "leader", "if job.complete(", "if True or (", LEADER),
    _node(
        "a job without its device ends",
        "leader",
        "if lost or job.digest != record.digest:",
        "if job.digest != record.digest:",
        LEADER,
    ),
    _node(
        "room that another model took is sought elsewhere",
        "occasions",
        "if served.uncovered and served.beside != beside:",
        "if now < 0:",
        LEADER,
    ),
    _node(
        "who refused is planned without",
        "refusals",
        "if (model, row.device_id, row.boot_id) not in self._said",
        "if row",
        LEADER,
    ),
    _node(
        "a new device must be steady first",
        "occasions",
        "(since[device, boot] + STABLE_S, last)",
        "(since[device, boot], last)",
        LEADER,
    ),
    _node(
        "shards stay within the budget",
        "shards",
        "        if missing <= 0:\n            return []",
        "        if missing <= 10**12:\n            return []",
        SHARDS,
    ),
    _node(
        "what is being loaded is waited for first",
        "chooser",
        "if waits and entry.failures < first:",
        "if waits and entry.failures < 0:",
        LEDGER,
    ),
    _node(
        "one contingency is asked for at a time",
        "chooser",
        "on_disk = not waits or entry.failures >= 2 * first",
        "on_disk = True",
        LEDGER,
    ),
    _node(
        "one answer a request",
        "ledger",
        "        self._forget(entry)\n        self._lags.on_answer(",
        "        self._lags.on_answer(",
        LEDGER,
    ),
    _node(
        "an answer is of its attempt's plan",
        "ledger",
        "attempt is None or attempt.plan.epoch != epoch",
        "attempt is None",
        LEDGER,
    ),
    _node(
        "evidence starts attempts again",
        "ledger",
        "if device in attempt.devices and device in self._doubts.hard",
        "if device in () and device in self._doubts.hard",
        LEDGER,
    ),
    _node(
        "impatience keeps to its budget", "ledger", "if self._budget.spend(now, forced=False):", "if now > 0:", LEDGER
    ),
    _node(
        "an origin keeps to its share",
        "ledger",
        "self._inside.get(way[0].epoch, 0) < way[0].share",
        "way[0].share",
        LEDGER,
    ),
    _node(
        "a device of another life is not used",
        "doubts",
        "return known is not None and known != plan.lives()[device]",
        "return False",
        LEDGER,
    ),
    _node("a refused epoch waits", "ledger", "entry.refused[attempt.plan.epoch] = now + wait_s", "pass", LEDGER),
    _node(
        "a superseded attempt is dropped",
        "assembly",
        "(-1, 0.0))[0] >= key.passage.attempt",
        "(-1, 0.0))[0] > 10**9",
        ASSEMBLY,
    ),
    _node(
        "a shard runs once for an attempt",
        "assembly",
        "if self.superseded(key) or key in self._fired or key in self._running:",
        "if self.superseded(key):",
        ASSEMBLY,
    ),
    _node(
        "a slice that came twice counts once",
        "assembly",
        "return entry is None or (source, address) not in entry.arrived",
        "return True",
        ASSEMBLY,
    ),
    _node(
        "addends are summed in their order",
        "inputs",
        "if order[self.count] != source:",
        "if order[0] != source and self.value is None:",
        ASSEMBLY,
    ),
    Mutant(
        "a byte goes to a device once",
        "meshnn/plan/shipments.py",
        "rest for box in missing for rest in boxes.subtract(box, hole)",
        "box for box in missing if hole",
        SHIPMENTS,
    ),
    _node(
        "what travels once counts once",
        "pipeline",
        "received_bytes if at == address else 0",
        "received_bytes",
        STAGES,
    ),
    _node(
        "inputs that were run are given back before the outputs have left",
        "pipeline",
        "self._assembly.spend(key)",
        "pass",
        STAGES,
    ),
    _node(
        "input sets with memory stay within the window",
        "assembly",
        "or slot.holding - leaving >= target.window",
        "or slot.holding - leaving > target.window",
        ASSEMBLY,
    ),
    _node(
        "a view that would keep others' bytes alive is copied",
        "inputs",
        "return sum(roots.values()) <= own_bytes",
        "return True",
        MEMORY,
    ),
    _node(
        "who is severed from another is used last",
        "core",
        "self.flaps.held(now).union(*firm(severed, planned))",
        "self.flaps.held(now)",
        "tests/node/test_deaths.py",
    ),
    _node(
        "plans count on linked devices only",
        "contacts",
        "self._linked.get(device) == member.boot_id or",
        "self._linked.get(device) is not None or",
        CONTACTS,
    ),
)
