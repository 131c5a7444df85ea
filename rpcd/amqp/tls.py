"""TLS to the broker: which certificates are trusted, which one is shown, and one clear sentence for each way it fails.

Twisted's own options decide whom to trust; nothing here takes part in that. When they have refused, `Handshake` looks at
what OpenSSL found and at the certificates that the broker has shown, and says it in words.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.error import ConnectError, ConnectionClosed, ConnectionDone, DNSLookupError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from rpcd.core.settings import Tls

_NO_TLS = "the port probably doesn't speak TLS (amqps:// is usually 5671)"
_OLD_TLS = "the broker and rpcd have no version of TLS in common; rpcd speaks 1.2 and newer"

_WAYS_OUT = (
    ("wrong version number", _NO_TLS),
    ("record layer failure", _NO_TLS),
    ("packet length too long", _NO_TLS),
    ("alert protocol version", _OLD_TLS),
    ("unsupported protocol", _OLD_TLS),
    ("certificate verify failed", "broker.tls.ca must have signed it, and it must not have expired"),
)
"""OpenSSL's words, which differ with its version, and what they mean for an operator."""

_ALERTS = {
    "certificate required": "wants one",
    "unknown ca": "does not know who signed it",
    "certificate expired": "says that it has expired",
    "certificate revoked": "says that it is revoked",
    "unsupported certificate": "says that it is not made for clients",
    "certificate unknown": "does not accept it",
    "bad certificate": "does not accept it",
    "handshake failure": "probably wants another one",
}
"""What a broker says about a client's certificate (RFC 8446, 6.2), in the words that OpenSSL has for it."""

_NOT_YET_VALID, _EXPIRED, _SELF_SIGNED, _REVOKED = 9, 10, 18, 23
_UNKNOWN = (2, 19, 20, 21)
"""OpenSSL's numbers for what is wrong with a certificate; see X509_STORE_CTX_get_error(3)."""

_MOST_NAMES = 5
"""Names of a certificate that are worth showing."""


def client_options(tls: Tls, host: str) -> "Handshake":
    """Make Twisted's TLS options for a broker on `host`: TLS 1.2 or newer, name and signer of its certificate checked.

    Raises OSError or OpenSSL.SSL.Error for files that can't be used; `check_files` finds that before the start.
    """
    trust: Any = None
    if tls.ca is not None:
        trust = ssl.trustRootFromCertificates(_certificates(Path(tls.ca).read_bytes()))
    shown = None
    if tls.certificate is not None and tls.key is not None:
        shown = ssl.PrivateCertificate.loadPEM(Path(tls.key).read_bytes() + b"\n" + Path(tls.certificate).read_bytes())
    name = tls.server_name or host
    return Handshake(ssl.optionsForClientTLS(name, trustRoot=trust, clientCertificate=shown), tls, name)


@implementer(IOpenSSLClientConnectionCreator)
class Handshake:
    """The TLS options of one attempt to connect, and afterwards why the other side or we ourselves refused."""

    def __init__(self, options: Any, tls: Tls, name: str) -> None:
        """Take Twisted's options, which alone decide, and what they were made from."""
        self._options = options
        self._tls = tls
        self._name = name
        self._connection: Any = None

    def clientConnectionForTLS(self, protocol: Any) -> Any:  # noqa: N802  # Twisted's name
        """Make the connection as Twisted's options do."""
        self._connection = self._options.clientConnectionForTLS(protocol)
        return self._connection

    def refusal(self, error: BaseException | None) -> str | None:
        """Say why this handshake failed, if it is one of those that OpenSSL has the same few words for."""
        if isinstance(error, VerificationError):
            return f"TLS failed: {self._wrong_name()}"
        said = _words(error) if isinstance(error, SSL.Error) else ""
        if "certificate verify failed" in said:
            found = self._distrusted()
            return f"TLS failed: {found}" if found is not None else None
        alert = next((meaning for word, meaning in _ALERTS.items() if f"alert {word}" in said), None)
        return None if alert is None else f"TLS failed: {self._refused(alert)}"

    def _chain(self) -> list[x509.Certificate]:
        """Return the certificates that the broker has shown, its own first; there may be none."""
        return [each.to_cryptography() for each in self._connection.get_peer_cert_chain() or ()]

    def _wrong_name(self) -> str:
        chain = self._chain()
        names = list(_names(chain[0])) if chain else []
        shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
        return (
            f"the broker's certificate is not for {self._name!r}{f', but for {shown}' if shown else ''}; "
            "correct the host, or set broker.tls.server_name to the name that it is for"
        )

    def _distrusted(self) -> str | None:
        """Say what OpenSSL found; None if this version of it can't be asked."""
        number, chain = _verify_result(self._connection), self._chain()
        if number == _EXPIRED:
            since = min((f" ({each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC)" for each in chain), default="")
            return f"the broker's certificate has expired{since}; renew it on the broker"
        if number == _NOT_YET_VALID:
            until = max((f" (until {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC)" for each in chain), default="")
            return f"the broker's certificate is not valid yet{until}; set the clock right, here or where it was made"
        if number == _SELF_SIGNED:
            return f"the broker's certificate is self-signed; if it is the right one, put it into {self._store()}"
        if number in _UNKNOWN:
            issuer = repr(_common_name(chain[-1].issuer)) if chain else "somebody"
            return f"the broker's certificate is signed by {issuer}, who is not trusted; put that CA into {self._store()}"
        if number == _REVOKED:
            return "the broker's certificate is revoked; renew it on the broker"
        text = _verify_words(number)
        return None if text is None else f"the broker's certificate is not accepted: {text}"

    def _store(self) -> str:
        return f"{self._tls.ca} (broker.tls.ca)" if self._tls.ca else "a file and name that as broker.tls.ca in the config"

    def _refused(self, meaning: str) -> str:
        if self._tls.certificate is None:
            return (
                "the broker wants a certificate from its clients; name one that it trusts in broker.tls.certificate, "
                "with its key in broker.tls.key"
            )
        return (
            f"the broker refuses the certificate {self._tls.certificate} (broker.tls.certificate): it {meaning}; "
            "use one that the broker's own CA has signed for clients"
        )


def _verify_result(connection: Any) -> int:
    """Ask OpenSSL what was wrong with a certificate; pyOpenSSL has it, but no public name for it. -1: it can't be asked."""
    ask = getattr(getattr(SSL, "_lib", None), "SSL_get_verify_result", None)
    return int(ask(connection._ssl)) if ask is not None and hasattr(connection, "_ssl") else -1  # noqa: SLF001


def _verify_words(number: int) -> str | None:
    """Return OpenSSL's own words for a number; None if there are none."""
    error = None
    if number > 0:
        error = getattr(getattr(SSL, "_lib", None), "X509_verify_cert_error_string", None)
    return None if error is None else str(SSL._ffi.string(error(number)).decode())  # type: ignore[attr-defined]  # noqa: SLF001


def _names(certificate: x509.Certificate) -> Iterator[str]:
    """Yield whom a certificate is for, in a form that can be shown."""
    try:
        for each in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value:
            if isinstance(each, x509.DNSName | x509.IPAddress):
                yield ascii(str(each.value)).strip("'")
    except (x509.ExtensionNotFound, ValueError):
        return


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return ascii(found[0].value if found else name.rfc4514_string()).strip("'")


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


def _words(error: SSL.Error) -> str:
    """Return OpenSSL's words without its names of places in its own code."""
    reported = error.args[0] if error.args and isinstance(error.args[0], list) else [error.args]
    return ", ".join(str(each[-1]) for each in reported if each) or type(error).__name__


def _tls_failure(error: SSL.Error) -> str:
    """Say what OpenSSL found and the way out if there is a likely one."""
    said = _words(error)
    remedy = next((f"; {way_out}" for word, way_out in _WAYS_OUT if word in said), "")
    return f"TLS failed: {said}{remedy}"
