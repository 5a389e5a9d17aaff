"""What a job is given of a working directory: planted secrets, weights, runs and environments stay here.

Run: python -m pytest tests/gpo/cluster/test_upload.py
"""

from pathlib import Path

import pytest

from gpo.cluster.upload import choose_files, stage
from gpo.errors import UserError

REPOSITORY = Path(__file__).parents[3]
WANTED = {"my.yaml", "data/prompts.jsonl", "oracle.py", "notes/tokenizer_notes.md", "environment.yml"}


def plant(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Put together here, so that no scanner takes this file for one that holds them.
LETTERS = "Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4zAb3dEf6h"
SECRETS = {
    ".env": "A=1",
    "prod.env": "A=1",
    ".env.local": "A=1",
    "server.pem": "x",
    "keys/id_rsa": "x",
    "keys/id_ed25519.pub": "x",
    "auth_token": "x",
    "hf_token.txt": "x",
    "aws_credentials": "x",
    "kubeconfig.yaml": "x",
    "client_secret.json": "{}",
    "settings.py": f'HUB = "{"hf" + "_" + LETTERS[:34]}"\n',
    "ci.yml": f"env:\n  GH: {'gh' + 'p_' + LETTERS[:36]}\n",
    "deploy.sh": "export AWS=" + "AKIA" + "ABCDEFGHIJKLMNOP" + "\n",
    "notebook.ipynb": '{"source": "client(api' + f'_key=\\"{LETTERS}\\")"}}',
    "tracker.cfg": f"wandb_api{'_key'} = {LETTERS}\n",
    "certificate.txt": "-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n",
    "session.json": '{"jwt": "' + "eyJhbGciOiJIUzI1" + "." + "eyJzdWIiOiIxMjM0" + '.abc"}',
}
NEVER = {
    ".git/config": "x",
    ".venv/bin/python": "x",
    "py311/pyvenv.cfg": "x",
    "py311/lib/a.py": "x",
    "runs/one/config.yaml": "x",
    "elsewhere/run.json": "{}",
    "elsewhere/iterations/001/rollouts/shard-00000.parquet": "x",
    "models/policy/config.json": "{}",
    "policy/model.safetensors": "x",
    "old/pytorch_model.bin": "x",
    "__pycache__/a.pyc": "x",
    ".cache/huggingface/token": "x",
}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    plant(tmp_path, {**dict.fromkeys(WANTED, "x = 1\n"), **SECRETS, **NEVER})
    (tmp_path / "outside").symlink_to("/etc")
    (tmp_path / "linked.txt").symlink_to("/etc/hostname")
    return tmp_path


def test_only_sources_and_data_go_up(workplace: Path) -> None:
    upload = choose_files(workplace)
    assert {path.as_posix() for path in upload.files} == WANTED


def test_what_looks_like_a_secret_is_left_out_and_named(workplace: Path) -> None:
    found = {path.as_posix(): reason for path, reason in choose_files(workplace).secrets.items()}
    assert set(found) - {".cache/huggingface/token"} == set(SECRETS)
    assert found["server.pem"] == "by its name" and found["settings.py"] == "by what is in it"


def test_the_staged_folder_holds_the_chosen_files_and_nothing_else(workplace: Path, tmp_path_factory) -> None:
    target = tmp_path_factory.mktemp("staged")
    stage(choose_files(workplace, excludes=["notes", "*.yml"]), target, largest_mib=1)
    staged = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert staged == WANTED - {"notes/tokenizer_notes.md", "environment.yml"}


def test_a_secret_is_found_at_the_end_of_a_large_file(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as stream:
        stream.truncate(65 << 20)
        stream.seek(0, 2)
        stream.write(("\nhf" + "_" + LETTERS[:34] + "\n").encode())
    assert choose_files(tmp_path).secrets == {Path("rows.jsonl"): "by what is in it"}


def test_a_file_that_only_looks_like_a_secret_may_be_named(workplace: Path) -> None:
    upload = choose_files(workplace, includes=["settings.py"])
    assert Path("settings.py") in upload.files and Path("settings.py") not in upload.secrets


def test_too_large_an_upload_is_refused_with_the_largest_files(workplace: Path, tmp_path_factory) -> None:
    plant(workplace, {"data/big.jsonl": b"x" * (3 << 20)})
    target = tmp_path_factory.mktemp("staged")
    with pytest.raises(UserError) as caught:
        stage(choose_files(workplace), target, largest_mib=2)
    message = str(caught.value)
    assert "data/big.jsonl: 3.0 MiB" in message and "the limit is 2 MiB" in message and "--exclude" in message
    assert list(target.iterdir()) == []


def test_this_repository_itself_may_go_up() -> None:
    upload = choose_files(REPOSITORY, excludes=["tests"])
    assert (
        upload.secrets == {} and Path("gpo/loop.py") in upload.files and Path("configs/quickstart.yaml") in upload.files
    )
