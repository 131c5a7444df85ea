"""Content type <-> objects: strict JSON, text and raw bytes, and which of them a consumer accepts."""

from collections.abc import Iterable
from typing import Any

from rpcd.core.bodies import Decode, Hook, decode_json
from rpcd.core.encoding import encode_json
from rpcd.core.errors import BadMessage
from rpcd.core.tables import ShortString

__all__ = ["ANY", "JSON", "RAW", "TEXT", "Codec", "check_encoding", "decode_json", "decode_raw", "decode_text"]
__all__ += ["Decode", "Hook", "encode_body", "encode_json"]

JSON = "application/json"
TEXT = "text/plain"
RAW = "application/octet-stream"
ANY = "*/*"


def encode_body(body: Any, content_type: str | None) -> tuple[bytes, str]:
    """Encode a body and name its content type: bytes stay as they are, text if the type says so, the rest is JSON."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), content_type or RAW
    if isinstance(body, str) and content_type is not None and content_type.startswith("text/"):
        return body.encode(), content_type
    return encode_json(body), content_type or JSON


def decode_text(payload: bytes) -> str:
    """Decode UTF-8 text; raise BadMessage if it is none."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise BadMessage("body", f"not UTF-8 (byte {error.start})") from None


def decode_raw(payload: bytes) -> bytes:
    """Return the bytes as they came."""
    return payload


def _decoders(kind: Any, hook: Hook | None) -> tuple[Decode, Decode, Decode]:
    """Build the decoders of JSON, of text and of all other content for a type: what they return is of it."""
    if kind is bytes:
        return decode_raw, decode_raw, decode_raw
    json = decode_json(kind, hook)
    if kind is Any:
        return json, decode_text, decode_raw

    def text(payload: bytes) -> Any:
        return json(encode_json(decode_text(payload)))

    return json, text, _refuse_bytes


def _refuse_bytes(_payload: bytes) -> Any:
    raise BadMessage("content_type", "bytes can't be what the handler's annotation asks for")


class Codec:
    """What one consumer accepts, and how each content type is decoded; built once at start.

    A message without a content type is taken as the first one accepted. Parameters are ignored except `charset`, which
    must be UTF-8; a content encoding other than UTF-8 or identity is refused, for nothing may be unpacked unasked.
    """

    def __init__(self, accept: Iterable[str], kind: Any = Any, hook: Hook | None = None) -> None:
        """Build decoders for the accepted types; `kind` is what the handler wants its body to be.

        `hook` makes the values of rpcd's own types in it.
        """
        self.accept = tuple(accept)
        self._decoders: dict[ShortString | None, Decode] = {}
        self._json, text, raw = _decoders(kind, hook)
        for accepted in self.accept:
            if accepted == ANY:
                self._decoders |= {ANY: raw, JSON: self._json, TEXT: text}
            elif accepted == JSON or accepted.endswith("+json"):
                self._decoders[accepted] = self._json
            else:
                self._decoders[accepted] = text if accepted.startswith("text/") else raw
        self._decoders[None] = self._decoders[self.accept[0]]

    def decoder(self, content_type: ShortString | None, content_encoding: ShortString | None) -> Decode:
        """Return the decoder for a message; raise BadMessage when its type or encoding is not accepted."""
        if content_encoding is not None:
            check_encoding(content_encoding)
        found = self._decoders.get(content_type)
        return found if found is not None else self._by_media_type(content_type)

    def _by_media_type(self, content_type: ShortString | None) -> Decode:
        text = content_type if isinstance(content_type, str) else ""
        media, *parameters = (part.strip().lower() for part in text.split(";"))
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "charset" and value.strip(" \"'") not in ("utf-8", "utf8", "us-ascii"):
                raise BadMessage("content_type", "only the charset utf-8 is accepted")
        found = self._decoders.get(media) or self._decoders.get(ANY)
        if found is None:
            raise BadMessage("content_type", f"not accepted here; accepted: {', '.join(self.accept)}")
        return found


def check_encoding(content_encoding: ShortString) -> None:
    """Raise BadMessage unless the content encoding leaves the body as it is."""
    if not isinstance(content_encoding, str) or content_encoding.strip().lower() not in (
        "",
        "utf-8",
        "utf8",
        "identity",
    ):
        raise BadMessage("content_encoding", "not accepted here; send the body unencoded")
