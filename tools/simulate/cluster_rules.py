"""The mutants of membership and election."""

from __future__ import annotations

from tools.simulate.mutant import Mutant

MEMBERSHIP = "tests/cluster/test_rules.py tests/cluster/test_membership.py tests/cluster/test_lifeguard.py"
ELECTION = "tests/cluster/test_election.py"
RULES = "tests/cluster/test_rules.py"


def _cluster(rule: str, module: str, line: str, broken: str, tests: str = MEMBERSHIP) -> Mutant:
    return Mutant(rule, f"meshnn/cluster/{module}.py", line, broken, tests)


CLUSTER = (
    _cluster(
        "R1 who is isolated accuses nobody", "judging", "row is not None and not self.isolated", "row is not None"
    ),
    _cluster(
        "R1 isolation restarts every suspicion",
        "judging",
        "            self._isolated_at = None\n            self._restart(now)",
        "            self._isolated_at = None",
    ),
    _cluster("R2 who slept judges nobody", "cluster", "now - self._deadline > STALL_S", "now - self._deadline > 1e9"),
    _cluster(
        "R2 a sleep restarts every suspicion",
        "judging",
        "self._watched.clear()\n        self._restart(now)",
        "self._watched.clear()",
    ),
    _cluster("R4 the accused hears of it at once", "membership", "self.post.echo(source, now)", "pass"),
    _cluster("R5 the dead are tried again", "seeking", "        if dead:", "        if dead and now < 0:"),
    _cluster("R6 nobody is buried who was heard", "judging", "heard = self._heard_since(suspicion)", "heard = False"),
    _cluster("R6 a last word before the burial", "judging", "elif suspicion.grace_until is None:", "elif now < 0:"),
    _cluster(
        "R7 two hosts' word buries at once", "judging", "len(suspicion.observers) >= 2", "len(suspicion.observers) >= 9"
    ),
    _cluster(
        "R7 one host's word does not", "judging", "len(suspicion.observers) >= 2", "len(suspicion.observers) >= 1"
    ),
    _cluster(
        "own suspects are asked every interval",
        "judging",
        "                self._prober.ping(device)\n        self._reprobe_at",
        "                pass\n        self._reprobe_at",
    ),
    _cluster("missing noes raise the own score", "probing", "max(0, probe.relays - probe.nacks)", "0"),
    _cluster("relays are asked", "probing", "        for relay in relays:\n", "        for relay in relays[:0]:\n"),
    _cluster("confirmers shorten a suspicion", "suspicion", "max_s - share * (max_s - min_s)", "max_s"),
    _cluster("an accuser counts once", "suspicion", "accuser not in self.accusers and len", "len"),
    _cluster("a refutation outbids", "membership", "incarnation=incarnation + 1", "incarnation=incarnation"),
    _cluster(
        "a refutation is stored",
        "membership",
        "            self.post.effects.append(PersistIncarnation(mine.incarnation))",
        "            pass",
    ),
    _cluster("a former life is refused", "membership", "if row.boot_id != boot:", "if not row.boot_id:"),
    _cluster(
        "an old incarnation accuses nobody",
        "judging",
        "if row is None or rumour.incarnation < row.incarnation:\n            return\n        suspicion",
        "if row is None:\n            return\n        suspicion",
    ),
    _cluster(
        "a remote death is a suspicion",
        "membership",
        "self.on_rumour(Suspect(row.device_id, row.incarnation, source), now)\n        else",
        "self.on_rumour(Dead(row.device_id, row.incarnation, source), now)\n        else",
    ),
    _cluster("tables that differ are exchanged", "anti_entropy", "if ours != theirs)", "if ours > theirs)"),
    _cluster(
        "a vote leaves when it is on disk",
        "election",
        "            self._owed = (candidate, term)\n\n",
        "            self._post.send(candidate, VoteReply(term, True, term))\n\n",
        ELECTION,
    ),
    _cluster(
        "a repeated vote waits for the disk too",
        "election",
        "self._safe_term < term:",
        "self._safe_term < 0:",
        ELECTION,
    ),
    _cluster(
        "one vote a term",
        "election",
        "elif self._forgetful or term <= self._term or not",
        "elif self._forgetful or term < self._term or not",
        ELECTION,
    ),
    _cluster(
        "a live lease follows nobody else",
        "election",
        "return term >= self._term and not held",
        "return term >= self._term",
        ELECTION,
    ),
    _cluster(
        "a live lease refuses pre-votes",
        "election",
        "and term > self._term and self._free_for(source, now)",
        "and term > self._term",
        ELECTION,
    ),
    _cluster(
        "a leader without answers steps down",
        "election",
        "if not self._following.holds(",
        "if now < 0 and not self._following.holds(",
        ELECTION,
    ),
    _cluster("who has just started lets fitter ones stand first", "election", "if self._in_turn:", "if now:", ELECTION),
    _cluster("a majority elects", "candidacy", "trusted // 2", "0", ELECTION),
    _cluster(
        "a leader that slept steps down",
        "election",
        "if self.leading and late_s >= QUORUM_S:",
        "if self.leading and late_s >= 1e9:",
        ELECTION,
    ),
    _cluster("of two leaders the lesser yields", "election", "self._me) < merit(", "self._me) > merit(", ELECTION),
    _cluster(
        "a new term exceeds all known", "election", "max(self._term, self._known_term) + 1", "self._term + 1", ELECTION
    ),
    _cluster(
        "a restarted leader leads no more",
        "election",
        "        if device == self.leader:\n            self._lose_leader(now)\n\n    def on_stall",
        "        if device == self._me:\n            self._lose_leader(now)\n\n    def on_stall",
        ELECTION,
    ),
    _cluster(
        "whom only the candidate suspects counts in its majority",
        "judging",
        "enough = 1 if len(self._roster.usable) == 2 else 2",
        "enough = 1",
        ELECTION,
    ),
    _cluster(
        "whom others suspect too does not count in a majority",
        "election",
        "len(self._view) - self._judge.doubted",
        "len(self._view)",
        ELECTION,
    ),
    _cluster(
        "a round of questions begins anew without the dead",
        "election",
        'if round_ is not None and round_.stage == "asking" and not set',
        'if round_ is not None and round_.stage == "" and not set',
        RULES,
    ),
)
