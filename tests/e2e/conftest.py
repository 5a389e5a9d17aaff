"""One finished run that several files look at."""

import pytest

from tests.e2e.tiny_run import make_workplace, run_to_end


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of two iterations that nothing disturbed: (config, run directory, what was printed)."""
    folder = tmp_path_factory.mktemp("run")
    config = make_workplace(folder)
    done = run_to_end(config, folder / "out")
    assert done.returncode == 0, done.stderr
    return config, folder / "out", done
