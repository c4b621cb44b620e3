"""`generate --c2pa`: a picture says who signed that a model drew it, and stays as it is."""

import datetime
import io
import json
import sys
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from typer.testing import CliRunner

from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.inference.content_credentials import read_credentials

PEM = serialization.Encoding.PEM
PICTURE = png_bytes(Image.new("RGB", (64, 64), "red"), {"prompt": "a red square"})


def certificate(name: str, key: Any, issuer: str, by: Any, *, days: int = 300) -> bytes:
    """A certificate of `name` for signing, or, where it issues itself, for issuing."""
    named = [
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, each),
                x509.NameAttribute(NameOID.COMMON_NAME, each),
            ]
        )
        for each in (name, issuer)
    ]
    issues = name == issuer
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
        + ["encipher_only", "decipher_only"],
        False,
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named[0])
        .issuer_name(named[1])
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issues, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not issues, key_cert_sign=issues, crl_sign=issues, **usage
            ),
            critical=True,
        )
    )
    if not issues:
        mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(mail, critical=False)
    return builder.sign(by, hashes.SHA256()).public_bytes(PEM)


def pem(key: Any, password: bytes | None = None) -> bytes:
    closed = serialization.BestAvailableEncryption(password) if password else None
    how = closed or serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """A key with its certificate and that of its issuer, which nobody else knows."""
    key, root = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate("Ada", key, "Root", root) + certificate("Root", root, "Root", root)
    file = tmp_path / "ada.pem"
    file.write_bytes(pem(key) + chain)
    return file


def manifest_of(png: bytes) -> tuple[dict[str, Any], set[str]]:
    """(the manifest of a signed PNG, what a reader finds wrong with it)."""
    facts = json.loads(c2pa.Reader("image/png", io.BytesIO(png)).json())
    faults = {fault["code"] for fault in facts.get("validation_status", [])}
    return facts["manifests"][facts["active_manifest"]], faults


@pytest.mark.parametrize("kind", ["es256", "ed25519"])
def test_a_signed_picture_names_its_making_and_its_signer(
    owner: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "ed25519":
        root, key = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
        chain = certificate("Ada", key, "Root", root) + certificate("Root", root, "Root", root)
        owner.write_bytes(pem(key) + chain)
    credentials = read_credentials(owner)
    assert credentials.algorithm == kind
    signed = credentials.sign(PICTURE, "square.png")
    manifest, faults = manifest_of(signed)
    assert faults == {"signingCredential.untrusted"}  # nobody knows the issuer; all else is right
    assert manifest["signature_info"]["issuer"] == "Ada"
    (actions,) = [a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    (action,) = actions["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    picture = Image.open(io.BytesIO(signed))
    assert picture.info["prompt"] == "a red square"
    assert picture.tobytes() == Image.open(io.BytesIO(PICTURE)).tobytes()
    # A text that is changed later no longer fits the signature.
    _, faults = manifest_of(signed.replace(b"a red square", b"a red circle"))
    assert "assertion.dataHash.mismatch" in faults


def test_generate_signs_and_draws_the_same_picture(owner: Path, tmp_path: Path) -> None:
    words = ["generate", "a photo of a blue ring", "--seed", "3", "--scale", "3"]
    for name, more in (("plain.png", []), ("signed.png", ["--c2pa", str(owner)])):
        done = CliRunner().invoke(app, [*words, *more, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    plain, signed = tmp_path / "plain.png", tmp_path / "signed.png"
    assert Image.open(plain).tobytes() == Image.open(signed).tobytes()
    assert Image.open(plain).info == Image.open(signed).info
    manifest, _ = manifest_of(signed.read_bytes())
    assert manifest["title"] == "signed.png"
    with pytest.raises(c2pa.C2paError):
        manifest_of(plain.read_bytes())


def test_a_folder_of_pictures_is_signed_by_one_key(owner: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a ring\n")
    words = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--scale", "3"]
    words += ["--out", str(tmp_path / "drawn")]
    assert CliRunner().invoke(app, [*words, "--c2pa", str(owner)]).exit_code == 0
    manifest_of((tmp_path / "drawn" / "00000" / "0000.png").read_bytes())
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "c2pa_certificate_sha256" in done.stderr


def test_what_cannot_sign_is_refused_before_a_model_is_loaded(owner: Path, tmp_path: Path) -> None:
    text = owner.read_bytes()
    other = ec.generate_private_key(ec.SECP256R1())
    start = text.index(b"-----BEGIN CERTIFICATE")
    cases = {
        "no key and certificate": b"hello",
        "holds no key and certificate: ": pem(other),
        "Password was not given": pem(other, b"secret") + text[start:],
        "the first certificate is not that of the key": pem(other) + text[start:],
    }
    for message, content in cases.items():
        (tmp_path / "bad.pem").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_credentials(tmp_path / "bad.pem")
    with pytest.raises(UserError, match="cannot be read"):
        read_credentials(tmp_path / "none.pem")
    key = ec.generate_private_key(ec.SECP256K1())
    (tmp_path / "bad.pem").write_bytes(pem(key) + certificate("Ada", key, "Root", other))
    with pytest.raises(UserError, match="C2PA has no signature of such a key"):
        read_credentials(tmp_path / "bad.pem")


def test_a_certificate_that_has_expired_signs_nothing(tmp_path: Path) -> None:
    key, root = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "old.pem").write_bytes(pem(key) + certificate("Ada", key, "Root", root, days=-1))
    with pytest.raises(UserError, match=r"square\.png cannot be signed: "):
        read_credentials(tmp_path / "old.pem").sign(PICTURE, "square.png")


def test_without_the_library_the_error_says_what_adds_it(
    owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UserError, match="which is not installed") as error:
        read_credentials(owner)
    assert error.value.hint == "pip install 'tarkit[c2pa]'"
