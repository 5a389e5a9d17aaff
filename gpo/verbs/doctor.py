"""`gpo doctor`: versions, devices, ports, room and access, each with a verdict and a remedy."""

import argparse

from gpo.printable import tell
from gpo.verbs.parts import Verbs


def add_to(verbs: Verbs) -> None:
    """`gpo doctor`."""
    doctor = verbs.add_parser(
        "doctor",
        help="whether this machine is as gpo was tested",
        description="Looks at versions, devices, memory, disk, ports, the model hub and, with --address, a cluster. "
        "Status 1 where something is bad.",
        epilog="example: gpo doctor --address http://10.0.0.1:8265",
    )
    doctor.add_argument("--address", metavar="URL", help="a cluster's dashboard to look at as well")
    doctor.set_defaults(verb=_doctor, after_interrupt="nothing was changed")


def _doctor(options: argparse.Namespace) -> int:
    from gpo.doctor import examine

    bad = 0
    for finding in examine(options.address):
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        tell(f"{finding.verdict:4}  {finding.what}: {finding.seen}{remedy}", flush=True)
        bad += finding.verdict == "bad"
    return 1 if bad else 0
