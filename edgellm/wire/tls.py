"""TLS 1.3 of one connection, both sides authenticated, without I/O.

    channel = Channel(client_credentials("~/.config/edgellm/tls/manager").context, server_side=False)
    sock.sendall(channel.data_to_send())
    plain = channel.receive(sock.recv(65536))

asyncio's own TLS takes 256 KB per connection before a byte has come; an idle peer must cost next to nothing here.
"""

import contextlib
import ssl
from collections.abc import Iterator

from edgellm.errors import RemoteProtocolError
from edgellm.wire.credentials import Identity, shown_by

_MAX_HANDSHAKE_BYTES = 64 << 10
_RECORD_BYTES = 1 << 14  # the most that TLS puts into one record
_PIECE_BYTES = 1 << 18


class Channel:
    """The TLS of one connection: the peer's bytes in, plain bytes out, and the other way round.

    `done` is True after the handshake; then `identity` says whom the peer's certificate names, and `serial` is its
    serial number. `own` is whose certificate this side shows, for errors.
    """

    def __init__(self, context: ssl.SSLContext, server_side: bool, own: str = "our"):
        self.done = False
        self.ended = False  # the peer has said that it sends no more
        self.identity: Identity | None = None
        self.serial: int | None = None
        self.received_bytes = 0
        self._own = own
        self._waiting: list[bytes] = []  # to be sent after the handshake
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_side)
        if not server_side:
            self._shake()

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer and return the plain bytes they hold.

        Raises RemoteProtocolError in a sentence; then `data_to_send` may hold what tells the peer.
        """
        self.received_bytes += len(data)
        self._in.write(data)
        try:
            if not self.done and not self._shake():
                if self.received_bytes > _MAX_HANDSHAKE_BYTES:
                    raise RemoteProtocolError(
                        f"a TLS handshake of {self.received_bytes} bytes, expected at most {_MAX_HANDSHAKE_BYTES}"
                    )
                return b""
            plain = []
            while True:
                try:
                    piece = self._tls.read(_RECORD_BYTES)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    piece = b""
                if not piece:
                    self.ended = True
                    break
                plain.append(piece)
            return plain[0] if len(plain) == 1 else b"".join(plain)
        except ssl.SSLError as e:
            raise RemoteProtocolError(_explain(e, self._own)) from None

    def send(self, data: bytes) -> Iterator[bytes]:
        """Yield the bytes that carry `data` to the peer, in pieces; none before the handshake, they come with its end.
        """
        if not self.done:
            self._waiting.append(data)
            data = b""
        view = memoryview(data)
        while True:
            self._write(view[:_PIECE_BYTES])
            if out := self._out.read():
                yield out
            view = view[_PIECE_BYTES:]
            if not view:
                return

    def data_to_send(self) -> bytes:
        """Return the bytes that TLS itself has to send now."""
        return self._out.read()

    def close(self) -> None:
        """Send nothing more; `data_to_send` then tells the peer."""
        if self.done:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.identity, self.serial = shown_by(self._tls)
        self.done = True
        self._write(memoryview(b"".join(self._waiting)))
        self._waiting.clear()
        return True

    def _write(self, view: memoryview) -> None:
        try:
            while view:
                view = view[self._tls.write(view) :]  # a record at a time
        except ssl.SSLError:
            """After a fatal alert, of theirs or ours: reading has reported it, or will."""


# What is wrong with the peer's certificate, by OpenSSL's X509_V_ERR_*.
_VERIFY = {
    9: "its certificate is not valid yet; are the clocks right?",
    10: "its certificate has expired. Deploy again to renew it",
    **dict.fromkeys((7, 18, 19, 20, 21, 30), "its certificate belongs to another cluster. Deploy again if it is yours"),
    23: "its certificate has been revoked. Deploy to it again if it is yours",
    **dict.fromkeys((3, 8, 12), "its certificate can't be checked for revocation. Deploy again"),
    26: "its certificate is for the other side of a connection",
}
_REFUSED = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired, by the peer's clock. Deploy again to renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it has been revoked. Deploy again for a new one",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is not valid yet, by the peer's clock. Are the clocks right?",
    "TLSV1_ALERT_UNKNOWN_CA": "it belongs to another cluster. Deploy again",
    "TLSV1_ALERT_DECRYPT_ERROR": "it belongs to another cluster. Deploy again",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is for the other side of a connection. Deploy again",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "none was shown. Deploy again",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it can't be checked. Deploy again",
}
_NO_TLS = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE"}


def _explain(error: ssl.SSLError, own: str) -> str:
    """Return OpenSSL's error as one sentence, with the peer as "it"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code, f"its certificate is not accepted: {error.verify_message}")
    reason = error.reason or "unknown error"
    if reason in _REFUSED:
        return f"refused {own} certificate: {_REFUSED[reason]}"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it showed no certificate"
    if reason in _NO_TLS:
        return "it doesn't speak TLS"
    if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_SHARED_CIPHER"):
        return "it doesn't speak TLS 1.3"
    return f"TLS failed: {reason.lower().replace('_', ' ')}"
