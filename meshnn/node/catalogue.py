"""Which models the mesh knows: names, cards, who holds which file. A pure machine of every node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshnn.cluster.member import DeviceId
from meshnn.errors import ModelConflictError, ModelError, UnknownModelError
from meshnn.graph.card import Card
from meshnn.node.effects import Changed, DropFile, Effect, Fetch, SaveNames, Send, note
from meshnn.node.messages import Holdings, NameRecord, Names

# Names (removed ones included) a mesh may know: tombstones beyond it are forgotten, oldest first.
NAMES_MAX = 128
NAME_LENGTH_MAX = 64
# Cards kept: those of names, then of files held here; the oldest of the rest are forgotten beyond it.
CARDS_MAX = 2 * NAMES_MAX
CARD_BYTES_MAX = 4_000_000


class Catalogue:
    """The names of models, merged from all members; the cards behind them; the holders of the files."""

    def __init__(self, me: DeviceId, records: Iterable[NameRecord], held: Mapping[str, Card | None]) -> None:
        """`records` as saved; `held`: digests of the whole files on this disk, with their cards."""
        self._me = me
        self._names = {record.name: record for record in records}
        self._cards = {digest: card for digest, card in held.items() if card is not None}
        self._held = set(held)
        self._rows: dict[DeviceId, Holdings] = {}
        self._linked: set[DeviceId] = set()
        self._wanted_cards: set[str] = set()
        self._unnamed: set[str] = set()
        self._version = 0

    @property
    def records(self) -> tuple[NameRecord, ...]:
        """The models that are there, by name."""
        return tuple(record for _, record in sorted(self._names.items()) if not record.removed)

    @property
    def held(self) -> frozenset[str]:
        """The digests whose whole file this device holds."""
        return frozenset(self._held)

    def card(self, digest: str) -> Card | None:
        """The card of a model, where it has arrived."""
        return self._cards.get(digest)

    def record(self, name: str) -> NameRecord:
        """The record of a name; UnknownModelError lists the choices."""
        found = self._names.get(name)
        if found is None or found.removed:
            choices = ", ".join(record.name for record in self.records) or "none were added"
            raise UnknownModelError(f"no model {name!r} in this mesh; known: {choices}")
        return found

    def current(self, name: str) -> str | None:
        """The digest that a name means now; None for a name that is not known or was removed."""
        found = self._names.get(name)
        return None if found is None or found.removed else found.digest

    def gone(self, name: str) -> bool:
        """Whether a name is known to have been removed; one that was never heard of is not."""
        found = self._names.get(name)
        return found is not None and found.removed

    def holders(self, digest: str) -> tuple[DeviceId, ...]:
        """The linked devices (and this one) that hold the whole file, sorted."""
        there = {device for device, row in self._rows.items() if digest in row.models}
        return tuple(sorted(there | ({self._me} if digest in self._held else set())))

    def knows(self, device: DeviceId, record: NameRecord) -> bool:
        """Whether `device` has said that it knows this record."""
        if device == self._me:
            return self._names.get(record.name) == record
        row = self._rows.get(device)
        return row is not None and _mark(record) in row.names

    def bind(self, name: str, card: Card, *, replace: bool) -> list[Effect]:
        """Name a model whose file is held here; ModelConflictError where the name means another file."""
        check_name(name)
        old = self._names.get(name)
        if old is not None and not old.removed and old.digest != card.digest and not replace:
            raise ModelConflictError(
                f"{name!r} is another file already; use --replace to bind it to this one, or --name"
            )
        if old is None and not self._room():
            raise ModelError(f"a mesh knows at most {NAMES_MAX} models; remove one first")
        self._cards[card.digest] = card
        self._held.add(card.digest)
        if old is not None and not old.removed and old.digest == card.digest:
            return [*self._announce(), Changed()]
        record = NameRecord(name, card.digest, card.size_bytes, _next_stamp(old), self._me)
        return self._take(record)

    def remove(self, name: str) -> list[Effect]:
        """Forget a name in the whole mesh."""
        old = self.record(name)
        return self._take(NameRecord(name, old.digest, old.size_bytes, _next_stamp(old), self._me, removed=True))

    def on_names(self, source: DeviceId, names: Names) -> list[Effect]:
        """Merge what a peer knows; what is new here goes on to the others and to disk."""
        fresh: dict[str, NameRecord] = {}
        for record in names.records[:NAMES_MAX]:
            if self._newer(record):
                self._put(record)
                fresh[record.name] = record
        if not fresh:
            return []
        others = [Send(to, Names(tuple(fresh.values()))) for to in sorted(self._linked - {source})]
        return [*others, *self._settled()]

    def on_holdings(self, source: DeviceId, row: Holdings) -> list[Effect]:
        """Remember what a peer holds."""
        old = self._rows.get(source)
        if old is not None and old.version >= row.version:
            return []
        self._rows[source] = row
        return [*self._fetch_cards(), Changed()]

    def on_linked(self, device: DeviceId) -> list[Effect]:
        """Tell a new neighbour everything."""
        self._linked.add(device)
        self._rows.pop(device, None)
        return [Send(device, Names(tuple(self._names.values()))), Send(device, self._row())]

    def on_unlinked(self, device: DeviceId) -> list[Effect]:
        """A neighbour without a link holds nothing for us."""
        self._linked.discard(device)
        self._rows.pop(device, None)
        return [Changed()]

    def on_card(self, digest: str, card: Card) -> list[Effect]:
        """A card arrived."""
        self._wanted_cards.discard(digest)
        if card.digest != digest:
            return [note("card_refused", warning=True, digest=digest, reason="it belongs to another model")]
        self._cards[digest] = card
        self._prune()
        return [Changed()]

    def on_card_failed(self, digest: str) -> list[Effect]:
        """No holder gave the card: the next word from a peer asks again."""
        self._wanted_cards.discard(digest)
        return []

    def on_held(self, digest: str) -> list[Effect]:
        """A whole file is on this disk now; one whose name went meanwhile is dropped again."""
        if not any(record.digest == digest for record in self.records):
            return [DropFile("model", digest)]
        self._held.add(digest)
        return [*self._announce(), Changed()]

    def retry_cards(self) -> list[Effect]:
        """Ask again for the cards that are missing."""
        return self._fetch_cards()

    def _newer(self, record: NameRecord) -> bool:
        """Whether to take a record: newer than ours, or of a new name there is room for (a removed one is no news)."""
        old = self._names.get(record.name)
        if old is not None:
            return record.order > old.order
        if record.removed and len(self._names) >= NAMES_MAX:
            return False
        return _proper(record.name) and self._room()

    def _room(self) -> bool:
        """Whether one more name fits, where need be in the place of a removed one."""
        return len(self._names) < NAMES_MAX or any(record.removed for record in self._names.values())

    def _put(self, record: NameRecord) -> None:
        """Take a record in; the oldest removed name makes room."""
        old = self._names.pop(record.name, None)
        if old is not None:
            self._unnamed.add(old.digest)
        if record.removed:
            self._unnamed.add(record.digest)
        if len(self._names) >= NAMES_MAX:
            del self._names[next(name for name, old in self._names.items() if old.removed)]
        self._names[record.name] = record

    def _take(self, record: NameRecord) -> list[Effect]:
        self._put(record)
        sends = [Send(to, Names((record,))) for to in sorted(self._linked)]
        return [*sends, *self._settled()]

    def _settled(self) -> list[Effect]:
        """What follows from a change of the names; files that no name means any more are dropped."""
        saved = SaveNames(tuple(self._names.values()))
        named = {record.digest for record in self.records}
        drops = sorted((self._unnamed & self._held) - named)
        self._unnamed.clear()
        self._held -= set(drops)
        self._prune()
        return [
            saved,
            *(DropFile("model", digest) for digest in drops),
            *self._announce(),
            *self._fetch_cards(),
            Changed(),
        ]

    def _prune(self) -> None:
        """Keep the cards bounded: plans that drain still need theirs, so only the oldest of too many go."""
        named = {record.digest for record in self.records}
        spare = [digest for digest in self._cards if digest not in named and digest not in self._held]
        for digest in spare[: max(0, len(self._cards) - CARDS_MAX)]:
            del self._cards[digest]

    def _announce(self) -> list[Effect]:
        self._version += 1
        row = self._row()
        return [Send(to, row) for to in sorted(self._linked)]

    def _row(self) -> Holdings:
        self._version = max(self._version, 1)
        marks = tuple(sorted(_mark(record) for record in self._names.values()))
        return Holdings(self._version, tuple(sorted(self._held)), marks)

    def _fetch_cards(self) -> list[Effect]:
        """Every model a name stands for has its card on every member, so that any of them can plan and ask."""
        wanted: list[Effect] = []
        for record in self.records:
            if record.digest in self._cards or record.digest in self._wanted_cards:
                continue
            peers = [device for device in self.holders(record.digest) if device != self._me]
            if peers:
                self._wanted_cards.add(record.digest)
                wanted.append(Fetch("card", record.digest, CARD_BYTES_MAX, "", tuple(peers)))
        return wanted


def _next_stamp(old: NameRecord | None) -> int:
    return 1 if old is None else old.stamp + 1


def check_name(name: str) -> None:
    """Refuse what cannot name a model: ModelError."""
    if not _proper(name):
        raise ModelError(
            f"{name!r} cannot name a model: use 1 to {NAME_LENGTH_MAX} printable characters without / or @"
        )


def _proper(name: str) -> bool:
    return 0 < len(name) <= NAME_LENGTH_MAX and name.isprintable() and "/" not in name and "@" not in name


def _mark(record: NameRecord) -> str:
    return f"{record.name}@{record.stamp}@{'' if record.removed else record.digest[:16]}"
