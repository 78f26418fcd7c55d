"""The election machine: lease, pre-vote, a quorum over the alive view, step-down, and the merge of two meshes."""

from __future__ import annotations

import random

from meshnn.cluster.candidacy import RANK_S, RESEND_S, STORING_S, Candidacy, Stage, candidacy, merit, turn_s
from meshnn.cluster.effects import LeaderChanged, PersistTerm
from meshnn.cluster.following import QUORUM_S, Following
from meshnn.cluster.judging import Judge
from meshnn.cluster.member import BootId, DeviceId
from meshnn.cluster.messages import Beat, Lead, LeadAck, Message, PreVote, PreVoteReply, Vote, VoteReply, Yield
from meshnn.cluster.post import Post
from meshnn.cluster.roster import Roster
from meshnn.cluster.timing import DIRECT_BEATS_MAX

LEASE_S = 6.0
BEAT_S = 1.0
FIRST_S = 1.0
HOPEFUL_S = 2.5
"""How long after its start a device that knows addresses waits to be met before it leads itself."""
PATIENCE_S = 2.0
TERM_LEAP = 2**32
"""How far above all it knows a device believes a term: more elections than there ever were."""
TERM_MAX = 2**61
_TERMED = (Lead, LeadAck, PreVote, PreVoteReply, Vote, VoteReply, Yield, Beat)


class Election:
    """Who leads, as this device sees it: `leader` and `term`; effects gather in the post."""

    def __init__(
        self,
        roster: Roster,
        post: Post,
        judge: Judge,
        term: int,
        voted_for: DeviceId | None,
        rng: random.Random,
        now: float,
    ) -> None:
        self.leader: DeviceId | None = None
        self.unanswered: list[DeviceId] = []
        self._term = term
        self._leader_term = term
        self._announced: tuple[DeviceId | None, int] = (None, -1)
        self._voted_for = voted_for
        self._safe_term = term
        self._known_term = term
        self._roster = roster
        self._post = post
        self._judge = judge
        self._rng = rng
        self._me = roster.me
        self._started_at = now
        self._lease_until = now
        self._campaign_at: float | None = None
        self._in_turn = False
        self._candidacy: Candidacy | None = None
        self._owed: tuple[DeviceId, int] | None = None
        self._forgetful = False  # the disk refuses: no promise would outlive this process
        self._abstaining: set[DeviceId] = set()  # members who said the same of themselves
        self._beat_at = now
        self._beats = 0
        self._beat_heard: dict[DeviceId, tuple[BootId, int]] = {}
        self._following = Following(now)
        self._view: tuple[DeviceId, ...] = roster.usable

    @property
    def term(self) -> int:
        """The leader's term; without a leader the highest term this device promised to."""
        return self._term if self.leader is None else self._leader_term

    @property
    def leading(self) -> bool:
        """Whether this device leads."""
        return self.leader == self._me

    @property
    def deadline(self) -> float | None:
        """When `on_deadline` is due next."""
        due = [None if self._candidacy is None else self._candidacy.deadline]
        if self.leading:
            due.append(self._beat_at)
        elif self.leader is not None:
            due.append(self._lease_until)
        elif self._candidacy is None:
            due.append(self._campaign_at)
        return min((at for at in due if at is not None), default=None)

    def start(self, hopeful: bool, now: float) -> None:
        """Begin without a leader; wait longer where addresses of others are known."""
        self._campaign_at = now + (HOPEFUL_S if hopeful else FIRST_S) + self._rng.uniform(0.0, 0.5)

    def on_hope(self, now: float) -> None:
        """An address was seen: give whoever is there the time to answer, within limits."""
        self._postpone(min(now + FIRST_S, self._started_at + HOPEFUL_S))

    def on_view(self, now: float) -> None:
        """The set of usable members may have changed. Joins and departures of others start no election."""
        before, self._view = self._view, self._roster.usable
        if before is self._view or before == self._view:
            return
        if self.leader is not None and self.leader not in self._view:
            self._lose_leader(now)
        round_ = self._candidacy
        if round_ is not None and round_.stage == "asking" and not set(round_.asked) <= set(self._view):
            # The dead will not answer, and a majority of the rest is smaller.
            self._candidacy, self._campaign_at = None, now
        joined = sorted(set(self._view).difference(before))
        if joined and self.leading:
            for device in joined[:DIRECT_BEATS_MAX]:
                self._following.on_ack(device, now)
                self._lead(device, now)
        elif joined and self.leader is None:
            # Whom it meets may have a leader: hear it before asking for votes.
            self._postpone(min(now + BEAT_S + RANK_S, self._started_at + HOPEFUL_S + BEAT_S))

    def on_new_life(self, device: DeviceId, now: float) -> None:
        """A device restarted: the leadership and the promises of its former life are void."""
        self._following.forget(device)
        self._abstaining.discard(device)
        if device == self.leader:
            self._lose_leader(now)

    def on_stall(self, late_s: float, now: float) -> None:
        """This device slept: a leader may have been replaced, a follower missed heartbeats by its own fault."""
        if self._candidacy is not None and self._candidacy.stage != "storing":
            # Nobody is accused of not answering questions that were slept through.
            self._candidacy = None
            self._campaign_at = now + self._delay_s(now)
        if self.leading and late_s >= QUORUM_S:
            self._step_down(now)
        elif self.leader is not None and not self.leading:
            self._lease_until = max(self._lease_until, now + PATIENCE_S)

    def on_message(self, source: DeviceId, message: Message, now: float, stream: bool = False) -> None:
        """An election message of a member; others, and strangers, are ignored. Its answer goes the way it came."""
        if source not in self._view or not self._credible(message):
            return
        match message:
            case Lead():
                self._on_lead(source, message, now, stream)
            case LeadAck():
                self._on_lead_ack(source, message, now)
            case PreVote(term):
                granted = not self._forgetful and term > self._term and self._free_for(source, now)
                answer = PreVoteReply(term, granted, self._term, votes=not self._forgetful)
                self._post.reply(source, answer, stream)
            case Vote(term):
                self._on_vote(source, term, now, stream)
            case PreVoteReply(asked, granted, term):
                self._on_voter(source, votes=message.votes)
                self._on_answer(source, "asking", asked, granted, term, now)
            case VoteReply(asked, granted, term):
                self._on_answer(source, "voting", asked, granted, term, now)
            case Yield(term):
                if self.leader == source and term >= self._leader_term:
                    self._lose_leader(now, PATIENCE_S)
            case _:
                pass

    def on_beat(self, beat: Beat, now: float) -> bool:
        """A leader's heartbeat that came as gossip; True where it is news to pass on."""
        row = self._roster.live(beat.leader)
        if row is None or row.boot_id != beat.boot_id or beat.leader == self._me or not self._credible(beat):
            return False
        # A beat told late must not bring back a leader that fell silent: each counts once in a life.
        boot_id, number = self._beat_heard.get(beat.leader, (beat.boot_id, 0))
        if boot_id == beat.boot_id and beat.number <= number:
            return False
        if not self._may_follow(beat.leader, beat.term, now):
            return False
        self._follow(beat.leader, beat.term, now)
        self._beat_heard[beat.leader] = (beat.boot_id, beat.number)
        return True

    def on_persisted(self, term: int, now: float) -> None:
        """The term is on disk: the vote may leave, ours or for another."""
        self._safe_term = max(self._safe_term, term)
        self._forgetful = False
        owed, self._owed = self._owed, None
        if owed is None or owed[1] != term or term != self._term:
            self._owed = owed
        elif owed[0] != self._me:
            self._post.send(owed[0], VoteReply(term, True, term))
        elif self._candidacy is not None and self._candidacy.stage == "storing":
            self._begin("voting", term, now)

    def on_unpersisted(self, term: int, now: float) -> None:
        """The disk refused the term: until one is stored this device follows, and neither votes nor leads anew."""
        self._forgetful = True
        if self._owed is not None and self._owed[1] <= term:
            self._owed = None
        if self._candidacy is not None and self._candidacy.stage == "storing":
            self._candidacy = None
            self._campaign_at = None if self.leading else now + STORING_S

    def on_deadline(self, now: float) -> None:
        """Do what is due."""
        if self.leading and self._beat_at <= now:
            self._on_beat_due(now)
        elif self.leader is not None and not self.leading and self._lease_until <= now:
            self._lose_leader(now)
        round_ = self._candidacy
        if round_ is not None and round_.deadline is not None and round_.deadline <= now:
            self._on_round_due(round_, now)
        elif round_ is None and self.leader is None and self._campaign_at is not None and self._campaign_at <= now:
            self._stand(now)

    def _stand(self, now: float) -> None:
        """Ask for votes; who has just started lets fitter ones go first, for a whole mesh may have started with it."""
        if self._in_turn:
            self._begin("asking", self._next_term(), now)
        else:
            self._in_turn = True
            self._campaign_at = now + self._delay_s(now)

    # -- leading --

    def _on_beat_due(self, now: float) -> None:
        others = [device for device in self._view if device != self._me]
        if not self._following.holds(((device, self._roster.since(device)) for device in others), now):
            self._step_down(now)
            return
        self._beats += 1
        self._beat_at = now + BEAT_S
        if len(others) > DIRECT_BEATS_MAX:
            boot_id = self._roster.mine.boot_id
            self._post.spread(Beat(self._me, boot_id, self._leader_term, self._beats), now)
            start = self._beats * DIRECT_BEATS_MAX % len(others)
            others = (others + others)[start : start + DIRECT_BEATS_MAX]
        for device in others:
            self._lead(device, now)

    def _lead(self, device: DeviceId, now: float) -> None:
        age = int(now - self._started_at).bit_length()
        beat = Lead(self._leader_term, self._beats, len(self._view), age)
        say = self._post.insist if self._following.on_ask(device, now) else self._post.send
        say(device, beat)

    def _on_lead_ack(self, source: DeviceId, ack: LeadAck, now: float) -> None:
        if not self.leading:
            return
        if ack.follows:
            self._following.on_ack(source, now)
        elif ack.term > self._leader_term:
            # A member cannot follow a term below its own: the leader raises its term, and stays.
            self._known_term = max(self._known_term, ack.term)
            self._renew(now)

    def outbid(self, term: int, now: float) -> None:
        """Somebody who led in this term left work that outranks ours: lead on in a term above it, if it is believed."""
        if term >= min(self._known_term + TERM_LEAP, TERM_MAX):
            return
        self._known_term = max(self._known_term, term)
        if self.leading:
            self._renew(now)

    def _renew(self, now: float) -> None:
        if self._candidacy is None and self._owed is None and not self._forgetful:
            self._begin("asking", self._next_term(), now)

    def _step_down(self, now: float, wait_s: float = BEAT_S / 2) -> None:
        self._following.clear()
        self._lose_leader(now, wait_s)

    # -- following --

    def _on_lead(self, source: DeviceId, lead: Lead, now: float, stream: bool) -> None:
        self._known_term = max(self._known_term, lead.term)
        if self.leading and not self._yields_to(source, lead, now):
            return
        follows = self._may_follow(source, lead.term, now)
        if follows:
            self._follow(source, lead.term, now)
        self._post.reply(source, LeadAck(lead.number, follows, self._term), stream)

    def _yields_to(self, source: DeviceId, lead: Lead, now: float) -> bool:
        age = int(now - self._started_at).bit_length()
        if merit(len(self._view), age, self._me) < merit(lead.view_size, lead.age, source):
            self._lead(source, now)
            if lead.term >= self._leader_term:
                self._renew(now)
            return False
        for device in self._view:
            if device != self._me:
                self._post.insist(device, Yield(self._leader_term))
        self._step_down(now, PATIENCE_S)
        return True

    def _may_follow(self, source: DeviceId, term: int, now: float) -> bool:
        # Sticky: while a leader's lease lives, no other is followed, whatever its term.
        held = self.leader not in (None, source) and (self.leading or self._lease_until > now)
        return term >= self._term and not held

    def _follow(self, leader: DeviceId, term: int, now: float) -> None:
        self._candidacy = None
        self._campaign_at = None
        self._lease_until = now + LEASE_S
        if term > self._term:
            self._store(term, leader)
        self._announce(leader, term)

    def _lose_leader(self, now: float, wait_s: float = 0.0) -> None:
        self._candidacy = None
        self._lease_until = now
        self._campaign_at = now + wait_s + self._delay_s(now)
        self._announce(None, self._term)

    # -- voting --

    def _free_for(self, candidate: DeviceId, now: float) -> bool:
        if self.leading:
            return False
        return self.leader in (None, candidate) or self._lease_until <= now

    def _on_vote(self, candidate: DeviceId, term: int, now: float, stream: bool) -> None:
        if self._owed == (candidate, term):
            return  # Its answer leaves when it is on disk.
        if term == self._term and self._voted_for == candidate and self._safe_term < term:
            self._owed = (candidate, term)
        elif term == self._term and self._voted_for == candidate:
            self._post.reply(candidate, VoteReply(term, True, self._term), stream)
        elif self._forgetful or term <= self._term or not self._free_for(candidate, now):
            self._post.reply(candidate, VoteReply(term, False, self._term), stream)
        elif self._owed is None or self._owed[1] < term:
            self._candidacy = None
            self._postpone(now + PATIENCE_S)
            self._store(term, candidate)
            self._owed = (candidate, term)

    def _begin(self, stage: Stage, term: int, now: float) -> None:
        if self._forgetful:
            self._campaign_at = None if self.leading else now + STORING_S
            return
        unasked = {self._me, *(self._abstaining if stage == "voting" else ())}
        asked = tuple(device for device in self._view if device not in unasked)
        round_ = candidacy(stage, term, asked, self._voters, now)
        self._candidacy = round_
        self._campaign_at = None
        if not self._advance(round_, now):
            self._ask(round_)

    def _ask(self, round_: Candidacy, again: bool = False) -> None:
        for device in round_.silent:
            question = PreVote(round_.term) if round_.stage == "asking" else Vote(round_.term)
            say = self._post.insist if again else self._post.send
            say(device, question)

    @property
    def _voters(self) -> int:
        """How many members can vote, this one included.

        Whom this device alone suspects still counts: a deaf one must not take everybody's silence for its majority.
        """
        return len(self._view) - self._judge.doubted - len(self._abstaining.intersection(self._view))

    def _on_voter(self, source: DeviceId, *, votes: bool) -> None:
        """A member says whether it can vote; who cannot must not keep the others from electing a leader."""
        if votes:
            self._abstaining.discard(source)
            return
        self._abstaining = {source, *self._abstaining.intersection(self._view)}
        if self._candidacy is not None and self._candidacy.stage == "asking":
            self._candidacy.needed = self._voters // 2

    def _on_answer(self, source: DeviceId, stage: Stage, asked: int, granted: bool, term: int, now: float) -> None:
        self._known_term = max(self._known_term, term)
        round_ = self._candidacy
        if round_ is None or (round_.stage, round_.term) != (stage, asked) or source not in round_.asked:
            return
        (round_.granted if granted else round_.refused).add(source)
        if not self._advance(round_, now) and round_.lost:
            self._stand_again(now)

    def _advance(self, round_: Candidacy, now: float) -> bool:
        if not round_.won:
            return False
        if round_.stage == "voting":
            self._candidacy = None
            self._become_leader(round_.term, now)
        elif round_.stage == "asking":
            round_.stage = "storing"
            round_.ends_at = now + STORING_S
            self._owed = (self._me, round_.term)
            self._store(round_.term, self._me)
        return True

    def _become_leader(self, term: int, now: float) -> None:
        if not self.leading:
            self._following.begin(now)
        self._beat_at = now
        self._announce(self._me, term)
        self._on_beat_due(now)

    def _on_round_due(self, round_: Candidacy, now: float) -> None:
        if now < round_.ends_at and round_.stage != "storing":
            round_.resend_at = now + RESEND_S
            self._ask(round_, again=True)
            return
        # Who answered none of the repeated questions, nor was heard otherwise, is as silent as after a failed probe.
        heard_at = {device: self._roster.heard_at(device) or 0.0 for device in round_.silent}
        self.unanswered += [device for device in round_.silent if heard_at[device] < round_.begun_at]
        self._stand_again(now)

    def _stand_again(self, now: float) -> None:
        self._candidacy = None
        if not self.leading:
            self._campaign_at = now + self._rng.uniform(0.2, 0.6) + self._delay_s(now)

    # -- shared --

    def _credible(self, message: Message | Beat) -> bool:
        """Whether a term can be true: one wild number must not drive all others to where none is left."""
        known = max(self._term, self._known_term, self._leader_term)
        return not isinstance(message, _TERMED) or message.term <= min(known + TERM_LEAP, TERM_MAX)

    def _next_term(self) -> int:
        return max(self._term, self._known_term) + 1

    def _delay_s(self, now: float) -> float:
        lost = None if self.leader == self._me else self.leader  # a leader that steps down is still a candidate
        rows = [row for row in map(self._roster.live, self._view) if row is not None and row.device_id != lost]
        ages = {row.device_id: now - self._roster.since(row.device_id) for row in rows}
        return turn_s(self._me, rows, ages) + self._rng.uniform(0.0, RANK_S / 2)

    def _postpone(self, until: float) -> None:
        if self._campaign_at is not None:
            self._campaign_at = max(self._campaign_at, until)

    def _store(self, term: int, voted_for: DeviceId) -> None:
        self._term = term
        self._known_term = max(self._known_term, term)
        self._voted_for = voted_for
        if self._owed is not None and self._owed[1] < term:
            self._owed = None
        self._post.effects.append(PersistTerm(term, voted_for))

    def _announce(self, leader: DeviceId | None, term: int) -> None:
        self.leader, self._leader_term = leader, term
        if self._announced != (leader, term):
            self._announced = (leader, term)
            self._post.effects.append(LeaderChanged(leader, term))
