"""Secrets at rest: sealed with the key file of the data directory (mode 600).

What must be read again (access keys for HMAC, the internal password of an instance, the first
user's password that `up` prints) is sealed with AES-GCM. What only needs checking is hashed instead
(`domain.passwords`).
"""

import base64
import hashlib
import hmac
import os
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12  # bytes, as AES-GCM wants


class Sealer:
    """Seals and opens short texts with one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._signing = hmac.new(key, b"signatures", hashlib.sha256).digest()

    @classmethod
    def of(cls, file: Path) -> "Sealer":
        """With the key in `file`, which is made (mode 600) when there is none."""
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = file.with_suffix(f".{os.getpid()}")
            descriptor = os.open(made, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(AESGCM.generate_key(256))
                os.fsync(out.fileno())
            try:
                os.link(made, file)  # whoever comes first wins, whole or not at all
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return cls(file.read_bytes())

    def seal(self, text: str) -> str:
        """`text`, sealed; each time differently."""
        nonce = os.urandom(_NONCE)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), None)).decode()

    def sign(self, purpose: str, text: str) -> str:
        """A signature of `text` that nobody else can make, of no use for another purpose."""
        return hmac.new(self._signing, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    def open(self, sealed: str) -> str:
        """What was sealed. Raises `cryptography.exceptions.InvalidTag` when the key is another."""
        raw = base64.b64decode(sealed)
        return self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], None).decode()
