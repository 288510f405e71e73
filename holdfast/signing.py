"""Keys and detached signatures in minisign's format (Ed25519): `minisign -Vm` checks what is signed here, and this what it signs.

Knows nothing of what is signed. The library is py-minisign, of the extra `sign`.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from holdfast import disk
from holdfast.problem import Problem, printable

EXTRA = "py-minisign is not installed; pip install 'holdfast[sign]', or check with `minisign -Vm FILE -p KEY`"
OPSLIMIT, MEMLIMIT = 2**22, 2**27
"""Of scrypt, which guards a key by its passphrase, as libsodium counts them: N = 2^17, r = 8, p = 1, 128 MiB."""


class Checked(NamedTuple):
    """A signature beside what it is said to be of."""

    valid: bool
    says: str
    """What the signer said where it is valid, else why it is not."""


def new_key(path: Path, passphrase: str | None = None) -> str:
    """Write a secret key to `path` (0600) and its public one to `path.pub`; returns the key's id.

    Raises:
        Problem: there is a file already, or it cannot be written.
    """
    public_at = Path(f"{path}.pub")
    for one in (path, public_at):
        if one.exists():
            raise Problem(f"{one}: already there; a key that is overwritten is lost, so choose another name")
    pair = _library().KeyPair.generate()
    secret, public = pair.secret_key, pair.public_key
    name = _id(public)
    public.untrusted_comment = f"minisign public key {name}"
    secret.untrusted_comment = f"minisign secret key {name}"
    if passphrase:
        secret.encrypt(passphrase, opslimit=OPSLIMIT, memlimit=MEMLIMIT)
    disk.write(path, bytes(secret).rstrip(b"\n") + b"\n")
    disk.write(public_at, bytes(public).rstrip(b"\n") + b"\n")
    secret.wipe()
    return name


def sign(content: bytes, key: Path, passphrase: Callable[[], str], says: str) -> tuple[bytes, str]:
    """The detached signature of `content` and the id of the key that made it.

    Args:
        key: a secret key's file.
        passphrase: asked where the key is guarded by one.
        says: what the signature vouches for beside the content.

    Raises:
        Problem: it is no such key, or the passphrase is not its own.
    """
    library = _library()
    try:
        secret = library.SecretKey.from_bytes(_read(key, "a secret key's file"))
        if secret.is_encrypted():
            secret.decrypt(passphrase())
        with secret:
            made = secret.sign(content, untrusted_comment="signature from holdfast", trusted_comment=_plain(says))
            return bytes(made).rstrip(b"\n") + b"\n", _id(secret.get_public_key())
    except library.Error as error:
        raise Problem(f"{key}: {error}; give the file that `holdfast seal --new-key FILE` wrote") from error


def is_line(public: str) -> bool:
    """Whether this is a public key itself, the line of its file that begins with RW, and no file's name."""
    return public.startswith("RW") and len(public) == 56


def check(content: bytes, signature: bytes, public: str) -> Checked:
    """Whether the signature is of this content, by the key whose public half is given: a file, or the text in it.

    Raises:
        Problem: that is no public key.
    """
    library = _library()
    try:
        if is_line(public) and not Path(public).exists():
            key = library.PublicKey.from_base64(public)
        else:
            key = library.PublicKey.from_bytes(_read(Path(public), "a public key, or its file"))
    except library.Error as error:
        raise Problem(f"{public}: no public key of minisign's ({error}); give the file that ends in .pub") from error
    try:
        signed = library.Signature.from_bytes(signature)
        key.verify(content, signed)
    except (library.Error, UnicodeError) as error:
        theirs = signer(signature)
        other = f"it is by key {theirs}, and not by {_id(key)}" if theirs not in (None, _id(key)) else str(error)
        return Checked(False, printable(other))
    return Checked(True, printable(signed.trusted_comment))


def signer(signature: bytes) -> str | None:
    """The id of the key that a signature says it is by, which nobody has checked; None where it is no signature."""
    try:
        content = base64.b64decode(signature.splitlines()[1], validate=True)
    except (ValueError, IndexError):
        return None
    return content[2:10][::-1].hex().upper() if len(content) == 74 else None


def _id(public: Any) -> str:
    """A key's id as minisign prints it: eight bytes, the last first."""
    return base64.b64decode(public.to_base64())[2:10][::-1].hex().upper()


def _plain(text: str) -> str:
    """What a comment may hold: printable ASCII."""
    return "".join(c if " " <= c < "\x7f" else "?" for c in printable(text))[:1000]


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Problem(f"{printable(path)}: cannot be read ({error}); give {what}") from error


def _library() -> Any:
    try:
        import minisign
    except ImportError:
        raise Problem(f"signatures: {EXTRA}") from None
    return minisign
