"""Certificates made by the commands of docs/security.md."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its key, PEM."""

    certificate: Path
    key: Path


def authority(folder: Path, name: str) -> Pair:
    """A certificate authority."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl("req", "-x509", *_EC, "-keyout", pair.key, "-out", pair.certificate, "-days", "2", "-subj", f"/CN={name}")
    return pair


def issued(folder: Path, name: str, *, by: Pair, days: int = 1) -> Pair:
    """A certificate for this machine, valid from now for so many days; -1: one that has expired."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, names = folder / f"{name}.csr", folder / f"{name}.names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl("req", *_EC, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
    signed = ("-CA", by.certificate, "-CAkey", by.key, "-CAcreateserial", "-days", str(days), "-extfile", names)
    _openssl("x509", "-req", "-in", request, *signed, "-out", pair.certificate)
    return pair


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
