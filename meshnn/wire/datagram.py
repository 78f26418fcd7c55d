"""UDP datagrams: a fixed header that says for which mesh, from whose life, to whose life; then one CBOR message.

Layout, big-endian: magic (2 bytes), version (1), key id (1), mesh tag (8), sender's device id (16), sender's boot id
(8), target's device id (16, zeros: anyone), target's boot id (8, zeros: any life), counter (u64), body. Key id 0 means
unsealed. A sealed body is followed by its 16-byte authentication tag, the header being authenticated with it; the
counter is the nonce and never repeats in one life.
"""

from __future__ import annotations

import base64
import binascii
import struct

import msgspec

from meshnn.errors import PeerError

MAGIC = b"mD"
VERSION = 1
HEADER = struct.Struct(">2sBB8s16s8s16s8sQ")
BODY_LIMIT_BYTES = 1200
SEAL_BYTES = 16
DATAGRAM_LIMIT_BYTES = HEADER.size + BODY_LIMIT_BYTES + SEAL_BYTES
UNSEALED = 0
REPLAY_WINDOW = 1024
DEVICE_ID_BYTES = 16
BOOT_ID_BYTES = 8
# Where the fields lie that are looked at before the header is taken apart.
_MESH, _SENDER, _LIFE = slice(4, 12), slice(12, 28), slice(12, 36)
_TARGET, _TARGET_BOOT, _COUNTER = slice(36, 52), slice(52, 60), slice(60, 68)
_NOBODY = bytes(DEVICE_ID_BYTES)
_ANY_LIFE = bytes(BOOT_ID_BYTES)


class DatagramHeader(msgspec.Struct, frozen=True):
    """Who says something to whom. An empty `target` is anyone, an empty `target_boot` any life of the target."""

    mesh_tag: bytes
    sender: str
    boot_id: str
    counter: int
    target: str = ""
    target_boot: str = ""
    key_id: int = UNSEALED


def device_id_text(raw: bytes) -> str:
    """The 16 bytes of a device id as people and messages see it: 26 characters of lower-case base32."""
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def device_id_bytes(device_id: str) -> bytes:
    """The 16 bytes behind a device id. Raises PeerError for what is none."""
    try:
        raw = base64.b32decode(device_id.upper() + "======")
    except (binascii.Error, ValueError) as error:
        raise PeerError("not a device id") from error
    if len(raw) != DEVICE_ID_BYTES or device_id_text(raw) != device_id:
        raise PeerError("not a device id")
    return raw


def boot_id_bytes(boot_id: str) -> bytes:
    """The 8 bytes behind a boot id of 16 lower-case hexadecimal digits. Raises PeerError for what is none."""
    try:
        raw = bytes.fromhex(boot_id)
    except ValueError as error:
        raise PeerError("not a boot id") from error
    if len(raw) != BOOT_ID_BYTES or raw.hex() != boot_id:
        raise PeerError("not a boot id")
    return raw


def encode_datagram(header: DatagramHeader, body: bytes) -> bytes:
    """The bytes of an unsealed datagram. Raises PeerError where `body` exceeds 1200 bytes."""
    if len(body) > BODY_LIMIT_BYTES:
        raise PeerError(f"a datagram's body of {len(body)} bytes exceeds {BODY_LIMIT_BYTES}")
    return (
        HEADER.pack(
            MAGIC,
            VERSION,
            header.key_id,
            header.mesh_tag,
            device_id_bytes(header.sender),
            boot_id_bytes(header.boot_id),
            device_id_bytes(header.target) if header.target else _NOBODY,
            boot_id_bytes(header.target_boot) if header.target_boot else _ANY_LIFE,
            header.counter,
        )
        + body
    )


def decode_datagram(data: bytes) -> tuple[DatagramHeader, bytes]:
    """The header and body of a datagram. Raises PeerError for anything else; the body is not looked at."""
    if not HEADER.size < len(data) <= DATAGRAM_LIMIT_BYTES:
        raise PeerError(f"a datagram of {len(data)} bytes")
    magic, version, key_id, mesh_tag, sender, boot, target, target_boot, counter = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PeerError("not a meshnn datagram")
    if version != VERSION:
        raise PeerError(f"datagram version {version}, this node speaks {VERSION}")
    header = DatagramHeader(
        mesh_tag=mesh_tag,
        sender=device_id_text(sender),
        boot_id=boot.hex(),
        counter=counter,
        target=device_id_text(target) if target != _NOBODY else "",
        target_boot=target_boot.hex() if target_boot != _ANY_LIFE else "",
        key_id=key_id,
    )
    return header, data[HEADER.size :]


class Sieve:
    """Which datagrams are for one life of one device, told from the bytes alone, before anything is made of them.

    A flood of those that are not costs a few comparisons each.
    """

    __slots__ = ("_boots", "_mine", "_prefix", "_tag", "_targets")

    def __init__(self, mesh_tag: bytes, device_id: str, boot_id: str) -> None:
        """Who listens. Raises PeerError for ids that are none."""
        self._tag = mesh_tag
        self._prefix = MAGIC + bytes((VERSION, UNSEALED)) + mesh_tag
        self._mine = device_id_bytes(device_id)
        self._targets = (self._mine, _NOBODY)
        self._boots = (boot_id_bytes(boot_id), _ANY_LIFE)

    def reason_against(self, data: bytes) -> str:
        """Why a datagram is dropped, in a word; empty to take it."""
        if not data.startswith(self._prefix) or not HEADER.size < len(data) <= DATAGRAM_LIMIT_BYTES:
            return self._strangeness(data)
        if data[_SENDER] == self._mine:
            return "own_datagram"
        if data[_TARGET] not in self._targets or data[_TARGET_BOOT] not in self._boots:
            return "datagram_for_another"
        return ""

    def _strangeness(self, data: bytes) -> str:
        known = data.startswith(MAGIC + bytes((VERSION,))) and HEADER.size < len(data) <= DATAGRAM_LIMIT_BYTES
        if not known:
            return "garbage_datagram"
        return "wrong_mesh_datagram" if data[_MESH] != self._tag else "unknown_key"


def life_of(data: bytes) -> bytes:
    """Whose life a datagram says it is from: the raw bytes of device id and boot id."""
    return data[_LIFE]


def counter_of(data: bytes) -> int:
    """A datagram's counter."""
    return int.from_bytes(data[_COUNTER], "big")


class ReplayWindow:
    """Which counters of one sender's life have been seen, among the last `size`; older ones count as seen."""

    __slots__ = ("_highest", "_seen", "_size")

    def __init__(self, size: int = REPLAY_WINDOW) -> None:
        self._size = size
        self._highest = -1
        self._seen = 0  # bit i: highest - i was seen

    def seen(self, counter: int) -> bool:
        """Whether `counter` came before, or is too old to tell."""
        behind = self._highest - counter
        return behind >= 0 and (behind >= self._size or bool(self._seen >> behind & 1))

    def accept(self, counter: int) -> bool:
        """Whether `counter` is new; if so it is seen from now on."""
        if self.seen(counter):
            return False
        ahead = counter - self._highest
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & ((1 << self._size) - 1) if ahead < self._size else 1
            self._highest = counter
        else:
            self._seen |= 1 << -ahead
        return True
