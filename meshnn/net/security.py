"""Who a device is: its key, its id, its certificate, and the TLS contexts that show and demand one.

Python's ssl shows a peer's certificate only where an authority signed it, so each mesh has an authority. In an open
mesh its key comes from a public constant and proves nothing; what proves a peer is that its id is its key's hash.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshnn.cluster.member import DeviceId
from meshnn.errors import NodeError, PeerError
from meshnn.wire.datagram import DEVICE_ID_BYTES, device_id_text

OPEN_SECRET = b"meshnn: an open mesh has no secret"
SALT = b"meshnn-v1"
MESH_TAG_BYTES = 8
KEY_FILE = "device.key"
CERTIFICATE_FILE = "device.crt"
# Boards without a clock boot in 1970 and certificates must not care; the same dates make the same bytes everywhere.
_NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_DOMAIN = "meshnn"


def derive(secret: bytes, purpose: str, size_bytes: int) -> bytes:
    """`size_bytes` of key material for one purpose, from a mesh's secret (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), size_bytes, SALT, purpose.encode()).derive(secret)


def mesh_tag(mesh: str, secret: bytes = OPEN_SECRET) -> bytes:
    """The 8 bytes by which datagrams and mDNS records of one mesh are told from another's."""
    return derive(secret, f"tag:{mesh}", MESH_TAG_BYTES)


def device_id_of(key: Ed25519PublicKey) -> DeviceId:
    """The id of the device that has this key: base32 of the first 16 bytes of SHA-256 of its SPKI."""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return DeviceId(device_id_text(hashlib.sha256(info).digest()[:DEVICE_ID_BYTES]))


class Authority:
    """What signs the certificates of one mesh; the same secret makes the same authority, byte for byte."""

    def __init__(self, secret: bytes = OPEN_SECRET) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive(secret, "authority", 32))
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshnn authority")])
        usage = _key_usage(signs_certificates=True)
        self._certificate = (
            self._builder(self._name, self._key.public_key(), 1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, None)
        )

    @property
    def pem(self) -> str:
        """The authority's own certificate, as PEM text."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def certify(self, key: Ed25519PublicKey) -> bytes:
        """The PEM certificate of the device with this key; the same key gives the same bytes."""
        device_id = device_id_of(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
        serial = int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:16], "big") >> 1
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            self._builder(subject, key, serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(authority_id, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{device_id}.{_DOMAIN}")]), critical=False)
            .sign(self._key, None)
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject: x509.Name, key: Ed25519PublicKey, serial: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(_NOT_BEFORE)
            .not_valid_after(_NOT_AFTER)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """This device's lasting identity, and the TLS contexts that prove it and demand the same of peers."""

    device_id: DeviceId
    key: Ed25519PrivateKey
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def load(cls, state_dir: Path, authority: Authority | None = None) -> Identity:
        """The identity kept in `state_dir`; made there at the first start, its key readable by its owner only.

        Raises NodeError where the folder cannot be written or the key in it is damaged.
        """
        authority = authority or Authority()
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            key = _load_key(state_dir / KEY_FILE)
            certificate = authority.certify(key.public_key())
            path = state_dir / CERTIFICATE_FILE
            if not path.exists() or path.read_bytes() != certificate:
                _write_new(path, certificate)
            server = _context(ssl.PROTOCOL_TLS_SERVER, authority, state_dir)
            client = _context(ssl.PROTOCOL_TLS_CLIENT, authority, state_dir)
        except OSError as error:
            raise NodeError(f"cannot keep this device's key in {state_dir}: {error.strerror or error}") from error
        return cls(device_id_of(key.public_key()), key, server, client)


def forget_key(state_dir: Path) -> None:
    """Set this device's key aside, as `device.key.cloned`: the next `load` makes another. Raises NodeError."""
    try:
        (state_dir / KEY_FILE).replace(state_dir / f"{KEY_FILE}.cloned")
    except OSError as error:
        raise NodeError(f"cannot set the cloned key in {state_dir} aside: {error.strerror or error}") from error


def _load_key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        fresh = Ed25519PrivateKey.generate()
        plain = serialization.NoEncryption()
        pem = fresh.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        # Another process on the same folder may be first: then its key is the one.
        with contextlib.suppress(FileExistsError):
            _write_new(path, pem, replace=False)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise NodeError(f"the device key {path} is damaged: remove it and this device gets a new identity") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise NodeError(f"the device key {path} is not an Ed25519 key: remove it and this device gets a new identity")
    return key


def _write_new(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Writes a file whole or not at all, mode 0600, on disk before it has its name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)


def _context(kind: int, authority: Authority, state_dir: Path) -> ssl.SSLContext:
    """TLS 1.3 only, both certificates demanded; a peer is known by its key, not by a host name."""
    context = ssl.SSLContext(kind)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority.pem)
    context.load_cert_chain(state_dir / CERTIFICATE_FILE, state_dir / KEY_FILE)
    if kind == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def peer_device_id(connection: ssl.SSLObject | ssl.SSLSocket | None) -> DeviceId:
    """The id of the peer at the other end of a finished handshake: its key's hash, and its certificate says the same.

    Raises PeerError where there is no certificate, its key is of another kind, or it names another device.
    """
    certificate = connection.getpeercert(binary_form=True) if connection is not None else None
    if not certificate:
        raise PeerError("a peer without a certificate")
    return certified_device_id(certificate)


def certified_device_id(certificate: bytes) -> DeviceId:
    """The id that a DER certificate proves. Raises PeerError where key and name disagree."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        key = parsed.public_key()
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        claimed = names.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm, InvalidSignature) as error:
        raise PeerError("a peer's certificate cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError("a peer's key is not Ed25519")
    device_id = device_id_of(key)
    if claimed != [f"{device_id}.{_DOMAIN}"]:
        raise PeerError("a peer's certificate names another device than its key")
    return device_id
