"""Identity: lasting, private, provable; and nothing else passes for it."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnn.errors import NodeError, PeerError
from meshnn.net.security import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    Identity,
    certified_device_id,
    device_id_of,
    mesh_tag,
    peer_device_id,
)


def der(pem: bytes) -> bytes:
    """A PEM certificate as DER."""
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def forged(key: ec.EllipticCurvePublicKey | None, name: str | None) -> bytes:
    """A certificate, signed by nobody we know, for this key (None: an Ed25519 one) and DNS name (None: none)."""
    signer = Ed25519PrivateKey.generate()
    subject = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key or signer.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC))
    )
    if name is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, None).public_bytes(serialization.Encoding.DER)


def test_an_identity_lasts_and_its_key_is_private(tmp_path: Path) -> None:
    """The same folder gives the same device; another folder another; the key is its owner's alone."""
    first = Identity.load(tmp_path / "a" / "deep")
    key = tmp_path / "a" / "deep" / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    assert Identity.load(tmp_path / "a" / "deep").device_id == first.device_id
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert Identity.load(tmp_path / "b").device_id != first.device_id
    assert sorted(path.name for path in key.parent.iterdir()) == [CERTIFICATE_FILE, KEY_FILE]


def test_an_id_is_the_hash_of_the_key_and_the_certificate_says_so(tmp_path: Path) -> None:
    """26 characters of lower-case base32, the same from the key and from the certificate."""
    identity = Identity.load(tmp_path)
    assert len(identity.device_id) == 26
    assert identity.device_id == device_id_of(identity.key.public_key())
    assert certified_device_id(der((tmp_path / CERTIFICATE_FILE).read_bytes())) == identity.device_id


def test_authorities_and_certificates_are_the_same_everywhere() -> None:
    """One secret, one authority, byte for byte; another secret another; one key, one certificate."""
    key = Ed25519PrivateKey.generate().public_key()
    assert Authority().pem == Authority().pem != Authority(b"other").pem
    assert Authority().certify(key) == Authority().certify(key)


def test_contexts_demand_tls_1_3_and_a_certificate(tmp_path: Path) -> None:
    """Neither end has a plain, older or anonymous mode."""
    identity = Identity.load(tmp_path)
    for context in (identity.server, identity.client):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
    assert identity.server.num_tickets == 0


def test_a_mesh_tag_tells_meshes_and_secrets_apart() -> None:
    """Eight bytes, the same on every device of a mesh."""
    assert mesh_tag("home") == mesh_tag("home")
    assert len({mesh_tag("home"), mesh_tag("lab"), mesh_tag("home", b"secret")}) == 3
    assert len(mesh_tag("home")) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        # One character of a good key changed: OpenSSL fails in a way that the library calls an internal error.
        b"-----BEGIN PRIVATE KEY-----\n"
        b"MC4CAQAwBQYDK2VvBCIEIJOG0Kp9bXEkWUFNohSKQbMYIoNayRJt5CAg/5SMywMh\n"
        b"-----END PRIVATE KEY-----\n",
    ],
)
def test_a_damaged_key_is_named(tmp_path: Path, content: bytes) -> None:
    """The error names the file; the key is not silently replaced, since that would be another device."""
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(NodeError, match=KEY_FILE):
        Identity.load(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_a_key_of_another_kind_is_named(tmp_path: Path) -> None:
    """Only Ed25519 is a device key."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / KEY_FILE).write_bytes(pem)
    with pytest.raises(NodeError, match="Ed25519"):
        Identity.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A state folder below a file is one clear line."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NodeError, match="state"):
        Identity.load(tmp_path / "file" / "state")


def test_a_certificate_proves_only_its_own_key() -> None:
    """Another device's name, no name, another kind of key, or no certificate at all prove nobody."""
    other = device_id_of(Ed25519PrivateKey.generate().public_key())
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key()
    for certificate in (forged(None, f"{other}.meshnn"), forged(None, None), forged(p256, "x.meshnn"), b"nothing"):
        with pytest.raises(PeerError):
            certified_device_id(certificate)
    with pytest.raises(PeerError):
        peer_device_id(None)
