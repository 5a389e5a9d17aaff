"""`gpo generate`: answers of checkpoints to an evaluation set."""

import argparse
from pathlib import Path

from gpo.verbs.parts import Verbs, count, quiet_libraries, request_of


def add_to(verbs: Verbs) -> None:
    """`gpo generate`."""
    generate = verbs.add_parser(
        "generate",
        help="answers of checkpoints in AlpacaEval's model_outputs.json form",
        description="One answer a prompt by each model. Prompts are AlpacaEval's, MT-Bench's (first turns), "
        "Arena-Hard's or IFEval's file, any prompts file, or hub:NAME[:SPLIT]. Beside NAME.json, NAME.meta records "
        "sampling settings, seed and weights. A start that was stopped goes on where it was.",
        epilog="example: gpo generate --model models/smollm2-135m-instruct runs/quickstart/iterations/002/checkpoint "
        "--prompts alpaca_eval.json --output runs/answers",
    )
    generate.add_argument("--model", type=Path, nargs="+", required=True, metavar="DIR", help="model directories")
    generate.add_argument(
        "--prompts", required=True, metavar="FILE", help=".json, .jsonl, .parquet or hub:NAME[:SPLIT]"
    )
    generate.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="a file; a folder for several models"
    )
    generate.add_argument("--name", nargs="+", metavar="NAME", help="generator names (default: from the directories)")
    generate.add_argument("--column", default="auto", help="column with the prompt (default: the known names)")
    generate.add_argument("--system", metavar="TEXT", help="system message for prompts that have none")
    generate.add_argument("--max-tokens", type=count, default=2048, metavar="N", help="of an answer (default: 2048)")
    generate.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: 1, 0 is greedy")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="0 (default): all tokens")
    generate.add_argument("--seed", type=int, default=0, metavar="N")
    generate.add_argument("--chunk-prompts", type=count, default=64, metavar="N", help="kept together (default: 64)")
    generate.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    generate.add_argument("--kv-cache-gib", type=float, default=1.0, metavar="GIB", help="on a CPU (default: 1)")
    generate.add_argument("--tensor-parallel", type=count, default=1, metavar="N", help="GPUs an engine is spread over")
    generate.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    generate.set_defaults(verb=_generate)


def _generate(options: argparse.Namespace) -> int:
    from gpo.evaluation.generate_plan import GenerateRequest

    request = request_of(GenerateRequest, options)
    quiet_libraries()
    from gpo.evaluation.generate import generate

    return generate(request)
