"""TLS to the broker: which certificates are trusted, which one is shown, and one clear sentence for each way it fails."""

from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.error import ConnectError, ConnectionClosed, ConnectionDone, DNSLookupError

from rpcd.core.settings import Tls

_NO_TLS = "the port probably doesn't speak TLS (amqps:// is usually 5671)"

_WAYS_OUT = (
    ("wrong version number", _NO_TLS),
    ("record layer failure", _NO_TLS),
    ("packet length too long", _NO_TLS),
    ("certificate verify failed", "broker.tls.ca must have signed it, and it must not have expired"),
)
"""OpenSSL's words, which differ with its version, and what they mean for an operator."""


def client_options(tls: Tls, host: str) -> Any:
    """Make Twisted's TLS options for a broker on `host`: TLS 1.2 or newer, name and signer of its certificate checked.

    Raises OSError or OpenSSL.SSL.Error for files that can't be used; `check_files` finds that before the start.
    """
    trust: Any = None
    if tls.ca is not None:
        trust = ssl.trustRootFromCertificates(_certificates(Path(tls.ca).read_bytes()))
    shown = None
    if tls.certificate is not None and tls.key is not None:
        shown = ssl.PrivateCertificate.loadPEM(Path(tls.key).read_bytes() + b"\n" + Path(tls.certificate).read_bytes())
    return ssl.optionsForClientTLS(tls.server_name or host, trustRoot=trust, clientCertificate=shown)


def _certificates(pem: bytes) -> list[Any]:
    marker = b"-----BEGIN CERTIFICATE-----"
    return [ssl.Certificate.loadPEM(marker + part) for part in pem.split(marker)[1:]]


def check_files(tls: Tls) -> list[tuple[str, str]]:
    """Return (setting, what is wrong) for every file that can't be used."""
    wrong = []
    for name in ("ca", "certificate", "key"):
        path = getattr(tls, name)
        if path is None:
            continue
        try:
            pem = Path(path).read_bytes()
            if name == "key":
                crypto.load_privatekey(crypto.FILETYPE_PEM, pem)
            elif not _certificates(pem):
                wrong.append((name, f"{path} holds no certificate (PEM)"))
        except OSError as error:
            wrong.append((name, f"{path} can't be read: {error.strerror}"))
        except (crypto.Error, SSL.Error, ValueError):
            wrong.append((name, f"{path} is not valid PEM"))
    return wrong


def explain(error: BaseException) -> str:
    """Say in one sentence why a connection failed."""
    if isinstance(error, DNSLookupError):
        return "the name is unknown"
    if isinstance(error, ConnectError):
        return str(error).rstrip(".").removeprefix("Connection was ") or type(error).__name__
    if isinstance(error, ConnectionDone):
        return "the connection was lost (the other side closed it without goodbye)"
    if isinstance(error, ConnectionClosed):
        return f"the connection was lost ({': '.join(['the other side cut it off', *map(str, error.args)])})"
    if isinstance(error, SSL.Error):
        return _tls_failure(error)
    return " ".join(str(error).split()) or type(error).__name__


def _tls_failure(error: SSL.Error) -> str:
    """Say what OpenSSL found, without its names of places in its own code, and the way out if there is a likely one."""
    reported = error.args[0] if error.args and isinstance(error.args[0], list) else [error.args]
    said = ", ".join(str(each[-1]) for each in reported if each) or type(error).__name__
    remedy = next((f"; {way_out}" for word, way_out in _WAYS_OUT if word in said), "")
    return f"TLS failed: {said}{remedy}"
