"""Two hosts on this machine: network namespaces, and logins to them for DeepSpeed's launcher."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVICE = "tats0"
FIRST_ADDRESS = "10.77.0.1"
PDSH = """#!{python}
import os, subprocess, sys, threading
at = sys.argv.index("-w")
hosts, command = sys.argv[at + 1].split(","), sys.argv[at + 2 :]
def run(rank, host):
    login = ["ssh", host, " ".join(command).replace("%n", str(rank))]
    session = subprocess.Popen(login, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in session.stdout:
        print(f"{{host}}: {{line}}", end="", flush=True)
    codes[rank] = session.wait()
codes = [0] * len(hosts)
threads = [threading.Thread(target=run, args=one, daemon=True) for one in enumerate(hosts)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(max(codes) if "-S" in sys.argv[:at] else 0)
"""
SSH = """#!{python}
import os, sys
arguments = sys.argv[1:]
while arguments[0].startswith("-"):
    del arguments[: 1 if "=" in arguments[0] else 2]
host, *command = arguments
inside = ["nsenter", "-t", open("{folder}/" + host).read(), "-p", "-m", "-n", "--"]
# As after a login: none of the caller's environment.
clean = ["env", "-i", "HOME={folder}", "PATH={folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
os.execvp(inside[0], [*inside, *clean, "sh", "-c", " ".join(command)])
"""
PKILL = """#!{python}
import os, re, signal, sys
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
    try:
        line = open(f"/proc/{{pid}}/cmdline").read().replace("\\0", " ")
        if pid != os.getpid() and re.search(sys.argv[-1], line): os.kill(pid, signal.SIGTERM)
    except OSError:
        pass
"""


@contextlib.contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Names of two network namespaces with addresses of their own, joined by a cable; skips the
    test where that is not allowed."""
    names = [f"tats{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        ends = [("netns", name) for name in names]
        _ip("link", "add", DEVICE, *ends[0], "type", "veth", "peer", DEVICE, *ends[1])
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError):
        _remove(names)
        pytest.skip("network namespaces cannot be made here")
    try:
        yield names
    finally:
        _remove(names)


@contextlib.contextmanager
def logins(hosts: list[str], folder: Path) -> Iterator[Path]:
    """A folder of commands called ``ssh`` and ``pdsh`` that run theirs on one of ``hosts``, which
    see only processes of their own from here on; what is left of those ends with the block.

    As over ssh, a command starts without the caller's environment, and outlives who started it, who
    no longer reads what it prints. ``pkill`` there is a stand-in, too: it can reach no other host.
    """
    inits = []
    (folder / "bin").mkdir(parents=True)
    built = Path.home() / ".cache" / "torch_extensions"
    (folder / ".cache").mkdir()
    (folder / ".cache" / built.name).symlink_to(built)  # DeepSpeed's op takes minutes to compile
    try:
        for host in hosts:
            alone = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
            init = subprocess.Popen(["ip", "netns", "exec", host, *alone, "sleep", "infinity"])
            inits.append(init)
            (folder / host).write_text(str(_only_child(init)))
        names = {"pdsh": PDSH, "ssh": SSH, "bin/pkill": PKILL}
        for name, text in names.items():
            (folder / name).write_text(text.format(python=sys.executable, folder=folder))
            (folder / name).chmod(0o755)
        yield folder
    finally:
        for init in inits:  # and with it every process of its host
            init.kill()
            init.wait()


def _only_child(parent: subprocess.Popen) -> int:
    """Skips the test where ``unshare`` is refused, which ends it."""
    deadline = time.monotonic() + 10
    while parent.poll() is None:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        if children and "sleep" in Path(f"/proc/{children[0]}/comm").read_text():
            return int(children[0])
        assert time.monotonic() < deadline, "no host after ten seconds"
        time.sleep(0.01)
    pytest.skip("process namespaces cannot be made here")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
