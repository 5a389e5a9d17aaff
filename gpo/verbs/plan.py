"""`gpo plan`: memory, time and placement of a run, before it starts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpo.verbs.parts import Verbs, above_zero, count

if TYPE_CHECKING:
    from gpo.config import RunConfig
    from gpo.planning.plan import Plan
    from gpo.planning.rates import Rates


def add_to(verbs: Verbs) -> None:
    """`gpo plan`."""
    plan = verbs.add_parser(
        "plan",
        help="memory, time and placement before launch",
        description="Counts memory by process and phase. With rates (of a run that finished an iteration, or given) "
        "also the time of an iteration and the pool sizes that keep samplers and scorers equally busy. With "
        "--simulate it plays an iteration on that many devices, with failures. Formulas: docs/cluster.md.",
        epilog="example: gpo plan configs/quickstart.yaml --rates runs/quickstart --simulate 64",
    )
    plan.add_argument("config", type=Path, help="YAML file of the run")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    plan.add_argument(
        "--device-gib", type=above_zero, metavar="GIB", help="memory of one GPU, to say what does not fit"
    )
    plan.add_argument("--rates", type=Path, metavar="RUN_DIR", help="take rates from a run that finished an iteration")
    plan.add_argument("--rate", action="append", default=[], metavar="NAME=NUMBER", help="give a rate")
    plan.add_argument("--prompts", type=count, metavar="N", help="prompts an iteration (default: the config's)")
    plan.add_argument("--simulate", type=count, metavar="DEVICES", help="play an iteration on so many devices")
    plan.add_argument(
        "--hours-between-failures", type=above_zero, metavar="H", help="of one device; default: none fails"
    )
    plan.add_argument(
        "--repair-seconds", type=above_zero, default=300.0, metavar="S", help="until it is back (default: 300)"
    )
    plan.add_argument(
        "--checkpoint-seconds", type=above_zero, default=600.0, metavar="S", help="between step checkpoints"
    )
    plan.add_argument("--seed", type=int, default=0, help="of the play")
    plan.set_defaults(verb=_plan, after_interrupt="nothing was changed")


def _plan(options: argparse.Namespace) -> int:
    from gpo.config import RunConfig
    from gpo.errors import UserError
    from gpo.modelfiles import with_compute_dtype
    from gpo.planning.plan import make_plan, with_checkpointing
    from gpo.planning.rates import rates_from
    from gpo.settings import read_settings

    config = with_compute_dtype(read_settings(RunConfig, options.config, options.overrides), [])
    config = with_checkpointing(config, [])
    rates = rates_from(options.rates, options.rate)
    prompts = options.prompts or config.prompts.per_iteration
    plan = make_plan(config)
    _print_memory(config, plan, options.device_gib)
    if rates is None:
        if options.simulate:
            raise UserError("--simulate: needs rates; give --rates RUN_DIR of a run, or --rate NAME=NUMBER")
        print("time: not known without rates; give --rates RUN_DIR of a run that finished an iteration")
        return 0
    if prompts is None:
        raise UserError("prompts.per_iteration is not set, so the plan cannot know it; give --prompts N")
    _print_time(config, rates, prompts)
    if options.simulate:
        _print_play(config, rates, prompts, options)
    return 0


def _print_memory(config: "RunConfig", plan: "Plan", device_gib: float | None) -> None:
    from gpo.modelfiles import read_model_config
    from gpo.planning.kv_cache import kv_bytes_a_token, kv_cache
    from gpo.planning.memory import GIB, available_memory_gib
    from gpo.planning.plan import device_phases

    print(f"policy: {plan.parameters / 1e6:.1f} M parameters")
    columns = ("base", "weights", "gradients", "optimizer", "activations", "kv_cache", "total")
    print(f"{'GiB a process':16}" + "".join(f"{name:>12}" for name in columns))
    for memory in plan.processes:
        print(f"{memory.process:16}" + "".join(f"{getattr(memory, name):12.2f}" for name in columns))
    listed = ", ".join(f"{name} {value:.1f}" for name, value in plan.memory_gib.items())
    if config.cluster.address is None:
        free = available_memory_gib()
        verdict = "fits" if plan.peak_gib <= free else "does not fit"
        print(f"together on this machine: {plan.peak_gib:.1f} GiB ({listed}); it {verdict}: {free:.1f} free")
    else:
        print(f"together on all nodes: {plan.peak_gib:.1f} GiB ({listed})")
    print(f"disk: {plan.disk_gib:.1f} GiB")
    token = kv_bytes_a_token(read_model_config(Path(config.policy.model)), config.policy.dtype)
    cache = kv_cache(config)
    held = int(cache.gib * GIB / token)
    print(f"KV cache: {token / 1024:.1f} KiB a token, so {cache.gib:.3g} GiB hold {held} tokens ({cache.reason})")
    for phase, gib in device_phases(config, plan).items():
        fits = (
            "" if device_gib is None else (": fits" if gib <= device_gib else f": does not fit into {device_gib:g} GiB")
        )
        print(f"on one GPU, {phase}: {gib:.2f} GiB{fits}")


def _print_time(config: "RunConfig", rates: "Rates", prompts: int) -> None:
    from gpo.planning.rates import balanced_pools, iteration_time

    time = iteration_time(config, rates, prompts)
    print(
        f"an iteration of {prompts} prompts: {time.total:.0f} s = generate and score {time.generate:.0f} (sampling "
        f"{time.sample:.0f}, scoring {time.score:.0f}) + train {time.train:.0f} + publish {time.publish:.0f} + "
        f"evaluate {time.evaluate:.0f}"
    )
    devices = config.cluster.samplers * config.rollout.engine.tensor_parallel + config.cluster.scorers
    samplers, scorers = balanced_pools(config, rates, devices)
    print(f"balanced in split over {devices} devices: {samplers} samplers and {scorers} scorers")


def _print_play(config: "RunConfig", rates: "Rates", prompts: int, options: argparse.Namespace) -> None:
    from gpo.planning.simulator import play, play_of

    what = play_of(
        config,
        rates,
        prompts,
        devices=options.simulate,
        hours_between_failures=options.hours_between_failures,
        repair_seconds=options.repair_seconds,
        checkpoint_seconds=options.checkpoint_seconds,
        seed=options.seed,
    )
    outcome = play(what)
    print(
        f"played on {what.devices} devices ({what.samplers} samplers, {what.scorers} scorers, {what.learners} "
        f"learners): {outcome.seconds:.0f} s (generate {outcome.generate_seconds:.0f}, train "
        f"{outcome.train_seconds:.0f}), {outcome.failures} failures, goodput {outcome.goodput:.1%}, lost to failures "
        f"{outcome.lost_to_failures:.1%}"
    )
