"""`gpo run`: start, or go on with, a run."""

import argparse
from pathlib import Path

from gpo.printable import tell
from gpo.verbs.parts import Verbs, quiet_libraries


def add_to(verbs: Verbs) -> None:
    """`gpo run`."""
    run = verbs.add_parser(
        "run",
        help="start, or go on with, an iterative self-play run",
        epilog="example: gpo run configs/quickstart.yaml preference.train_on=oracle --run-dir runs/upper-bound",
    )
    run.add_argument("config", type=Path, help="YAML file of the run")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    run.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/NAME)")
    run.add_argument("--dry-run", action="store_true", help="check everything, print config and plan, start nothing")
    run.add_argument("--fresh", action="store_true", help="throw away what is in the run directory")
    run.set_defaults(verb=_run)


def _run(options: argparse.Namespace) -> int:
    from gpo.cpu import share_one_arena

    share_one_arena()
    from gpo.config import RunConfig
    from gpo.modelfiles import with_compute_dtype
    from gpo.settings import dump_yaml, read_settings

    config = read_settings(RunConfig, options.config, options.overrides)
    root: Path = options.run_dir or Path("runs") / config.name
    from gpo.cluster.storage import storage_of
    from gpo.cluster.submit import check_secrets
    from gpo.journal import dtype_of_run, goes_on, is_finished
    from gpo.planning.plan import check_fits, make_plan, with_checkpointing
    from gpo.preflight import prepare, warn_of_slow_type
    from gpo.trackers import check_installed

    check_secrets()
    check_installed(config.tracking.report_to, "tracking.report_to")
    prepared = prepare(config)
    goes_on_in = None
    if config.policy.dtype == "auto" and not options.fresh:
        goes_on_in = dtype_of_run(root, storage_of(config.cluster, root))
    config = with_compute_dtype(config, prepared.notes, goes_on_in)
    warn_of_slow_type(config, prepared.notes)
    config = with_checkpointing(config, prepared.notes)
    plan = make_plan(config)
    if options.fresh or not is_finished(root):  # One that is only says again what came out.
        check_fits(plan, root, alone=config.cluster.address is None)
    if options.dry_run:
        if not options.fresh:
            goes_on(root, config, prepared.data_sha256)
        print(dump_yaml(config))
        tell(f"# {plan.parameters / 1e6:.1f} M parameters; run directory {root}, about {plan.disk_gib:.1f} GiB")
        for name, value in plan.memory_gib.items():
            print(f"# memory, {name}: {value:.1f} GiB")
        for note in prepared.notes:
            tell(f"# {note}")
        counts = ", ".join(str(len(prompts)) for prompts in prepared.prompts)
        print(f"# prompts an iteration: {counts}; held out: {len(prepared.heldout)}")
        return 0
    from gpo.run import run_to_end

    quiet_libraries()
    return run_to_end(config, root, prepared, fresh=options.fresh)
