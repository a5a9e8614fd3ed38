"""The users of the page and their passwords.

`python -m xpsr_jax.app.passwords NAME >> users.txt` asks for a password and prints a line of the users file. A line is
`NAME:scrypt:N:R:P:SALT:HASH`, with SALT and HASH in base64. The password itself is never stored.
"""

import asyncio
import base64
import binascii
import getpass
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.errors import UserError
from xpsr_jax.files import read_regular

MAX_FILE_BYTES = 1_000_000
MAX_PASSWORD = 1000
MIN_PASSWORD = 8


@dataclass(frozen=True)
class Password:
    """A salted hash of a password (RFC 7914).

    Attributes:
        n, r, p: scrypt's cost, block size and parallelism. Hashing needs 128 n r bytes of memory.
        salt: the random salt.
        key: the hash.
    """

    n: int
    r: int
    p: int
    salt: bytes
    key: bytes

    @classmethod
    def of(cls, password: str) -> "Password":
        """Hashes a new password with a new salt."""
        salt = secrets.token_bytes(16)
        return cls(2**14, 8, 5, salt, _scrypt(password, salt, 2**14, 8, 5))

    @classmethod
    def read(cls, text: str) -> "Password":
        """Reads `scrypt:N:R:P:SALT:HASH`. Raises ValueError."""
        kind, n, r, p, salt, key = text.split(":")
        if kind != "scrypt" or not all(re.fullmatch("[0-9]{1,7}", number) for number in (n, r, p)):
            raise ValueError(kind)
        password = cls(
            int(n), int(r), int(p), base64.b64decode(salt, validate=True), base64.b64decode(key, validate=True)
        )
        if not password.salt or len(password.key) != 32:
            raise ValueError("salt and hash")
        password.fits("")  # hashlib raises for invalid combinations of n, r and p.
        return password

    def fits(self, password: str) -> bool:
        """Whether this is the password."""
        key = _scrypt(password, self.salt, self.n, self.r, self.p)
        return hmac.compare_digest(key, self.key)

    def __str__(self) -> str:
        salt, key = (base64.b64encode(part).decode() for part in (self.salt, self.key))
        return f"scrypt:{self.n}:{self.r}:{self.p}:{salt}:{key}"


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=2**28, dklen=32)


def read_passwords(file: Path) -> dict[str, Password]:
    """Passwords by user name. Raises UserError if the file cannot be read, has an invalid line, or has no users."""
    text = read_regular(file, max_bytes=MAX_FILE_BYTES)
    passwords: dict[str, Password] = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        try:
            if not name or name in passwords:
                raise ValueError(name)
            passwords[name] = Password.read(rest)
        except (ValueError, binascii.Error, OverflowError) as error:
            hint = "make each line with python -m xpsr_jax.app.passwords NAME, one line per name"
            raise UserError(f"{file}, line {number}: not NAME:scrypt:N:R:P:SALT:HASH; {hint}") from error
    if not passwords:
        raise UserError(f"{file}: has no users; make lines with python -m xpsr_jax.app.passwords NAME")
    return passwords


def checker(passwords: dict[str, Password]) -> Callable[[str, str], Awaitable[bool]]:
    """Returns the function with which Gradio checks passwords.

    It checks one password at a time. An unknown name takes as long as a known one.
    """
    turn = asyncio.Lock()
    unknown = Password.of(secrets.token_hex())

    async def check(name: str, password: str) -> bool:
        if len(password) > MAX_PASSWORD:
            return False
        async with turn:
            fits = await asyncio.to_thread(passwords.get(name, unknown).fits, password)
        return fits and name in passwords

    return check


def main(argv: list[str]) -> int:
    """Asks for a password and prints the line for the file. Returns the exit code."""
    if len(argv) != 1 or not re.fullmatch(r"[^\s:#][^:\n]*", argv[0]):
        print("usage: python -m xpsr_jax.app.passwords NAME >> FILE    (a name without a colon)", file=sys.stderr)
        return 2
    try:
        typed = sys.stdin.isatty()
        password = getpass.getpass("Password: ", stream=sys.stderr) if typed else sys.stdin.readline().rstrip("\n")
    except KeyboardInterrupt:
        return 130
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        print(f"A password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.", file=sys.stderr)
        return 1
    print(f"{argv[0].strip()}:{Password.of(password)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
