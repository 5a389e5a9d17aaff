"""A local run can be reached from this machine only: every socket that its processes listen on is looked at.

Run: python -m pytest tests/e2e/test_sockets.py
"""

import ipaddress
import subprocess
import time

import psutil
import pytest

from tests.e2e.tiny_run import command, environment, journal, make_workplace

DEADLINE_SECONDS = 600
SMALL = ("iterations=1", "prompts.per_iteration=4", "train.workers=2", "cluster.samplers=2", "cluster.shape=split")
"""Two of a kind, so that whatever they talk over is open too."""


def listening(root: psutil.Process) -> set[tuple[str, str, int]]:
    """(title, address, port) of every TCP socket that listens, and UDP socket that is bound, below a process."""
    found = set()
    for process in [root, *root.children(recursive=True)]:
        try:
            title = " ".join(process.cmdline())[:60]
            for one in process.net_connections(kind="inet"):
                is_udp = one.type.name == "SOCK_DGRAM" and not one.raddr
                if one.status == psutil.CONN_LISTEN or is_udp:
                    found.add((title, one.laddr.ip, one.laddr.port))
        except psutil.Error:
            continue
    return found


def is_loopback(address: str) -> bool:
    """Also of gRPC's sockets, which take IPv4 through IPv6: Python 3.11 does not know ::ffff:127.0.0.1 as loopback."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


@pytest.mark.parametrize(
    ("address", "inside"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False), ("0.0.0.0", False)],
)
def test_a_loopback_address_is_known_in_every_form(address, inside):
    assert is_loopback(address) is inside


@pytest.mark.long  # looks at every process once a second for a whole run: `make cluster`
def test_every_listening_socket_of_a_local_run_is_on_loopback(tmp_path):
    config, out, said = make_workplace(tmp_path), tmp_path / "out", tmp_path / "said"
    seen: set[tuple[str, str, int]] = set()
    end = time.monotonic() + DEADLINE_SECONDS
    with said.open("w") as stream:
        process = subprocess.Popen(
            command(config, out, *SMALL), env=environment(), cwd=tmp_path, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None and time.monotonic() < end:
                seen |= listening(psutil.Process(process.pid))
                time.sleep(1)
            assert process.poll() == 0, said.read_text()[-2000:]
        finally:
            process.terminate()
    assert {line["stage"] for line in journal(out) if line["event"] == "stage"} >= {"generate", "train", "evaluate"}
    assert len({port for _, _, port in seen}) > 5, "Ray's own were seen"
    assert any("RayTrainWorker" in title for title, _, _ in seen), "and the learners', in training"
    assert sorted(one for one in seen if not is_loopback(one[1])) == []
