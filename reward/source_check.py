"""Whether a preference source can be opened, found out within milliseconds.
What it is: the check behind a command line, before anything heavy starts: files, tensor headers and Python
syntax are read. What it is not: it imports neither torch nor the user's code, and opens nothing.
"""

import ast
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reward.checkpoint_files import INDEX_FILE, SINGLE_FILE, read_object, read_weight_map, refuse_pickles
from reward.errors import RewardInputError
from reward.source_url import check_url

SPECS = "gpm:DIR (a reward model), python:FILE.py:FUNCTION (a function prefer(messages, a, b)) or url:http://HOST/PATH"

# As in reward.heads, which needs torch.
_VALUE_HEAD = "value_head.weight"
_PROMPT_HEAD = "prompt_head.weight"


def check_source(spec: str) -> None:
    """Raises RewardInputError, within milliseconds and without torch, for a source that could not be opened."""
    kind, _, rest = spec.partition(":")
    if kind == "url" and rest:
        check_url(rest)
        return
    if kind == "gpm" and rest:
        check_model(Path(rest))
        check_template(Path(rest))
        return
    file, function = parse_function_spec(rest)
    if kind == "python" and file.name and function:
        _check_function(file, function)
        return
    raise RewardInputError(f"the preference source is {spec!r}, expected {SPECS}")


def parse_function_spec(text: str) -> tuple[Path, str]:
    """FILE.py:FUNCTION."""
    file, _, function = text.rpartition(":")
    return Path(file), function


def _check_function(file: Path, function: str) -> None:
    if not file.is_file():
        raise RewardInputError(f"{file}: no such file, expected Python with a function {function!r}")
    try:
        names = _top_level_names(ast.parse(file.read_text("utf-8")))
    except OSError as error:
        raise RewardInputError(f"{file} cannot be read ({error.strerror}), expected Python") from None
    except (SyntaxError, ValueError) as error:
        raise RewardInputError(f"{file} is not Python ({error}), expected a function {function!r}") from error
    if function not in names and "*" not in names:
        found = ", ".join(sorted(names)) or "nothing"
        raise RewardInputError(f"{file} has no function {function!r}; it defines {found:.200}")


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def check_model(directory: Path) -> None:
    """Raises RewardInputError for what is no reward model; whether it has a template is not looked at."""
    if not (directory / "config.json").is_file():
        raise RewardInputError(f"{directory} has no config.json, expected the directory of a reward model")
    config = read_object(directory / "config.json")
    hidden_size = (config.get("text_config") or config).get("hidden_size")
    shapes = _head_shapes(directory)
    if _VALUE_HEAD not in shapes:
        raise RewardInputError(
            f"{directory} has no tensor {_VALUE_HEAD!r} in safetensors, expected a reward model; train one "
            "with `gpo reward train`"
        )
    for name, shape in shapes.items():
        if len(shape) != 2 or (hidden_size is not None and shape[1] != hidden_size):
            raise RewardInputError(f"{name} in {directory} has shape {shape}, expected [rows, {hidden_size}]")
    width = shapes[_VALUE_HEAD][0]
    gate = shapes.get(_PROMPT_HEAD, [width // 2])[0]
    if width == 0 or (width > 1 and width % 2) or gate != width // 2:
        raise RewardInputError(
            f"the heads in {directory} have {width} (value) and {gate} (prompt) rows, expected an even "
            "number or 1, and half as many"
        )


def check_template(directory: Path) -> None:
    """Raises RewardInputError for a model without chat template, which reads no messages, only the custom form."""
    if not _has_template(directory):
        raise RewardInputError(
            f"{directory} has no chat template (neither in tokenizer_config.json nor chat_template.jinja), "
            "expected the one the model was trained with"
        )


def _head_shapes(directory: Path) -> dict[str, list[int]]:
    """From the headers alone; a head that the files do not have is left out."""
    heads = (_VALUE_HEAD, _PROMPT_HEAD)
    if (directory / SINGLE_FILE).is_file():
        return _shapes(directory / SINGLE_FILE, heads)
    if not (directory / INDEX_FILE).is_file():
        refuse_pickles(directory)
        return {}
    shard_of = read_weight_map(directory)
    shapes: dict[str, list[int]] = {}
    for name in heads:
        if name in shard_of:
            shapes |= _shapes(directory / shard_of[name], (name,))
    return shapes


def _shapes(file: Path, names: tuple[str, ...]) -> dict[str, list[int]]:
    try:
        with safe_open(file, framework="np") as tensors:
            here = set(tensors.keys())
            return {name: list(tensors.get_slice(name).get_shape()) for name in names if name in here}
    except (SafetensorError, OSError) as error:
        raise RewardInputError(f"{file} cannot be read ({error}), expected safetensors") from error


def _has_template(directory: Path) -> bool:
    file = directory / "tokenizer_config.json"
    in_config = file.is_file() and bool(read_object(file).get("chat_template"))
    return in_config or (directory / "chat_template.jinja").is_file()
