"""`gpo submit`: a run as a job of a Ray cluster."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, above_zero, quiet_libraries, request_of


def add_to(verbs: Verbs) -> None:
    """`gpo submit`."""
    submit = verbs.add_parser(
        "submit",
        help="run as a job of a Ray cluster",
        description="Uploads the working directory without secrets, weights, runs and environments, and starts "
        "`gpo run` on the cluster. With --wait it shows the job's output and returns its exit status; Ctrl-C then "
        "stops the job, and the same command goes on with the run.",
        epilog="example: gpo submit my.yaml --address http://10.0.0.1:8265 --run-dir /shared/runs/my --wait",
    )
    submit.add_argument("config", type=Path, help="YAML file of the run")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    submit.add_argument("--address", required=True, metavar="URL", help="the cluster's dashboard, http://HEAD:8265")
    submit.add_argument("--run-dir", type=Path, help="where the run lives, on the cluster (default: runs/NAME here)")
    submit.add_argument("--wait", action="store_true", help="follow the job, and return its exit status")
    submit.add_argument("--fresh", action="store_true", help="throw away what is in the run directory")
    submit.add_argument("--env", action="append", default=[], metavar="NAME", help="hand this variable on")
    submit.add_argument(
        "--secret", action="append", default=[], metavar="NAME", help="the nodes' environment must hold this variable"
    )
    submit.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="files that do not go up")
    submit.add_argument(
        "--include", action="append", default=[], metavar="FILE", help="a file that only looks like a secret"
    )
    submit.add_argument(
        "--largest-mib", type=above_zero, default=50.0, metavar="N", help="limit of the upload (default: 50)"
    )
    submit.add_argument("--lock", type=Path, metavar="FILE", help="install these pinned packages for the job")
    submit.set_defaults(verb=_submit)


def _submit(options: argparse.Namespace) -> int:
    from gpo.cluster.submit import SubmitRequest, submit
    from gpo.config import RunConfig
    from gpo.settings import read_settings

    config = read_settings(RunConfig, options.config, options.overrides)
    quiet_libraries()
    return submit(config, request_of(SubmitRequest, options))
