"""Certificates for one test run, made with openssl: an authority, and whom it vouches for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

_KEY: Final = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
_DAYS: Final = ["-days", "2"]


class Authority:
    """A certificate authority in ``folder``.

    Attributes:
        certificate: its own, PEM: what its friends trust.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, name
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        names = ["-keyout", str(self._key), "-out", str(self.certificate), "-subj", f"/CN={name}"]
        _openssl("req", "-x509", *_KEY, "-nodes", *_DAYS, *names)

    def issue(self, name: str, *, password: str | None = None) -> tuple[Path, Path]:
        """Certificate and private key (PEM, PKCS8) of ``name``, who may be reached at 127.0.0.1."""
        certificate, key, request, extensions = (
            self._folder / f"{self._name}-{name}.{kind}" for kind in ("pem", "key", "csr", "ext")
        )
        guarded = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
        _openssl("req", *_KEY, *guarded, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}")
        extensions.write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"]
        _openssl(
            "x509", "-req", "-in", str(request), *signed, "-out", str(certificate), *_DAYS, "-extfile", str(extensions)
        )
        return certificate, key


def _openssl(*arguments: str) -> None:
    told = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0, told.stderr
