"""Content Credentials (C2PA): a signature in a PNG that says that a model drew it, and who signed.

The paper's Sec. J asks for marks of generated pictures. The manifest has one action, `c2pa.created`
with IPTC's source type `trainedAlgorithmicMedia`, and a hash of the whole file, its texts included.
The library is the C2PA project's own (the extra `c2pa`); signing opens no connection, and so there
is no time stamp of an authority. Whether a reader trusts the signature depends on the certificate.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import read_text
from tarkit.config import provenance
from tarkit.errors import UserError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
HOW = "a PEM file with a private key and, after it, its certificate and those that issued it"


@dataclass(frozen=True)
class Credentials:
    """A private key with the chain of certificates that names its owner."""

    algorithm: str
    key: bytes
    chain: bytes
    sha256: str
    """Of the owner's certificate."""

    def sign(self, png: bytes, title: str) -> bytes:
        """The same PNG with a signed manifest; the pixels and texts stay.

        Raises UserError where the certificate is not one for signing.
        """
        import c2pa

        maker = {"name": "tarkit", "version": provenance()["tarkit"]}
        action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
        manifest = {
            "claim_generator_info": [maker],
            "title": title,
            "format": "image/png",
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        try:
            # A thumbnail would be twenty times as large as a small picture.
            settings = c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
            given = c2pa.C2paSignerInfo(self.algorithm.encode(), self.chain, self.key, None)
            with c2pa.Signer.from_info(given) as signer:
                builder = c2pa.Builder(manifest, context=c2pa.Context(settings))
                builder.sign(signer, "image/png", io.BytesIO(png), signed)
        except c2pa.C2paError as error:
            raise UserError(
                f"{title} cannot be signed: {' '.join(str(error).split())[:300]}",
                hint=f"--c2pa needs {HOW}, for signing (key usage: digital signature)",
            ) from None
        return signed.getvalue()


def read_credentials(file: Path) -> Credentials:
    """The key and certificates in a PEM file.

    Raises UserError without the extra `c2pa`, for a file that does not hold them, and where key and
    certificate do not belong together.
    """
    try:
        import c2pa  # noqa: F401
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
    except ImportError:
        raise UserError(
            "--c2pa needs c2pa-python, which is not installed", hint="pip install 'tarkit[c2pa]'"
        ) from None
    text = read_text(file, hint=f"--c2pa needs {HOW}").encode()
    try:
        key = serialization.load_pem_private_key(text, password=None)
        chain = x509.load_pem_x509_certificates(text)
    except (ValueError, TypeError) as error:  # TypeError: the key has a password
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{file} holds no key and certificate: {why}", hint=HOW) from None
    pem = serialization.Encoding.PEM
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(pem, public) != chain[0].public_key().public_bytes(
        pem, public
    ):
        raise UserError(f"{file}: the first certificate is not that of the key", hint=HOW)
    return Credentials(
        algorithm=_algorithm(key, file),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        chain=b"".join(certificate.public_bytes(pem) for certificate in chain),
        sha256=chain[0].fingerprint(hashes.SHA256()).hex(),
    )


def _algorithm(key: Any, file: Path) -> str:
    """C2PA's name of the signature that a private key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise UserError(
        f"{file}: C2PA has no signature of such a key",
        hint=f"a key of {', '.join(CURVES)}, Ed25519 or RSA",
    )
