"""Forbids sockets to every Python process that finds this folder on its path, children too, and writes down each attempt.

An audit hook, not a patch: it hears CPython's own socket module, whoever holds which name of it, and cannot be taken off.
Loopback and Unix sockets are let through; processes speak over them.
"""

import os
import sys

ASKED = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENT = ("socket.connect", "socket.sendto", "socket.sendmsg")


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    if event in SENT:
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # a Unix socket's address is a path
    elif event in ASKED:
        host = arguments[0]
    else:
        return
    if host is None or str(host) in ("localhost", "::1") or str(host).startswith("127."):
        return
    with open(os.environ["NO_NETWORK_RECORD"], "a") as record:
        record.write(f"{event} {host}\n")
    raise OSError(f"{event} {host}: no network here")


sys.addaudithook(_forbid)
