"""ssh: how another machine's worker is started through it, and what its failures mean.

No port and no password of ours: ssh asks its agent, and whatever goes wrong becomes a sentence with one thing to do.
"""

from __future__ import annotations

import re

HOST = re.compile(r"(?!-)[\w.@:-]+", re.ASCII)
OPTIONS = ["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ConnectTimeout=8"]
FAILED = 255  # its exit code when it was not the command over there that failed


def is_host(text: str) -> bool:
    """Whether ssh may be given this as a host: one word that can be neither an option nor anything of a shell's."""
    return bool(HOST.fullmatch(text))


def ssh(host: str) -> tuple[str, list[str], dict[str, str]]:
    """The worker of another machine. Raises ValueError for what is no host."""
    if not is_host(host):
        raise ValueError(f"{host!r} is not a host: user@name, with letters, digits and . _ - :")
    return "ssh", [*OPTIONS, host, "mlxldm", "worker"], {}


# What ssh, or the shell over there, writes when it fails; and what that means. {host} is the machine, {name} without
# the user.
FAILURES = (
    (r"could not resolve hostname|name or service not known|nodename nor servname",
     "No machine is called ‘{name}’. Is the name right, and is it in this network?"),
    (r"host key verification failed|no .* host key is known",
     "ssh does not know ‘{name}’ yet. Run this in a terminal once and answer yes: ssh {host}"),
    (r"remote host identification has changed",
     "‘{name}’ has another host key than the last time. If you know why, remove the old one: ssh-keygen -R {name}"),
    (r"permission denied",
     "‘{name}’ asks for a password or does not know your key. Set one up, in a terminal: ssh-copy-id {host}"),
    (r"connection refused", "‘{name}’ is there but takes no ssh connections. Is remote login switched on there?"),
    (r"timed out|timeout, server|no route to host|host is down|network is unreachable",
     "‘{name}’ does not answer. Is it switched on, and in this network?"),
    (r"connection .*(closed|reset)|broken pipe|send disconnect|kex_exchange",
     "‘{name}’ closed the connection. Try again in a moment."),
)  # fmt: skip
NOT_THERE = (
    r"not found|no such file or directory|not recognized as an internal",
    "mlxldm was not found on ‘{name}’. Install it there, so that this works: ssh {host} mlxldm --version",
)


def explained(host: str, log: str, code: int) -> str:
    """A sentence for what ssh said before it failed."""
    name = host.rpartition("@")[2]
    # The key that changed is said in a banner, with the failed verification after it: the first that fits in this order
    order = (FAILURES[2], *FAILURES[:2], *FAILURES[3:], NOT_THERE)
    for pattern, sentence in order:
        if re.search(pattern, log, re.IGNORECASE):
            return sentence.format(name=name, host=host)
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    ending = f"it said: {last[:200]}" if last else f"ssh ended with code {code}."
    return f"No connection to ‘{name}’: {ending}"


def line_broke(log: str, code: int) -> bool:
    """Whether it was the connection that failed, and not the worker at its other end."""
    return code == FAILED and any(re.search(pattern, log, re.IGNORECASE) for pattern, _ in FAILURES)
