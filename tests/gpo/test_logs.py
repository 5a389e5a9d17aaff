"""What people see on standard error while a run is at work, and what stands in its log files.

Run: python -m pytest tests/gpo/test_logs.py
"""

import fcntl
import io
import logging
import os
import pty
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from gpo import logs
from gpo.logs import OURS, Progress, fitted, log_to_file, log_to_terminal, say
from tests.gpo.report_runs import ESCAPES
from tests.gpo.test_terminal import controls

REWRITE = "\r\x1b[2K"


class Screen(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(logs, "time", made)
    return made


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=made))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(logs, "_terminal", logs._Terminal())
    return made


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", *OURS)]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)


def lines_on(screen: Screen) -> list[str]:
    """What is left to read: of a line that was rewritten, its last form."""
    return [line.rpartition(REWRITE)[2] for line in screen.getvalue().split("\n") if line]


def test_a_sentence_and_an_error_cannot_steer_the_terminal(screen: Screen) -> None:
    log_to_terminal()
    logging.getLogger("gpo.trackers").warning("tracker %s failed", ESCAPES)
    say(f"gpo: {ESCAPES}\n  the way on")
    assert controls(screen.getvalue()) == []
    first, second, third = screen.getvalue().splitlines()
    assert first.startswith("tracker ") and "red" in first and second.startswith("gpo: ") and third == "  the way on"


def test_a_log_file_cannot_steer_it_either_and_keeps_its_tracebacks(tmp_path: Path) -> None:
    log_to_file(tmp_path, "driver")
    try:
        raise ValueError(ESCAPES)
    except ValueError:
        logging.getLogger("gpo").exception("of %s", ESCAPES)
    text = (tmp_path / "driver.log").read_text("utf-8")
    assert controls(text) == [] and text.count("owned") == 2
    assert "ERROR gpo: of" in text and "\nTraceback" in text and "\n  File" in text


def test_the_title_and_the_note_of_a_progress_line_cannot_steer_it(screen: Screen) -> None:
    progress = Progress(f"{ESCAPES}: read", 2, "answers")
    progress.update(1, ESCAPES)
    progress.update(2, ESCAPES)
    assert controls(screen.getvalue().replace(REWRITE, "")) == []


def test_a_plain_progress_line_cannot_steer_a_terminal_that_the_file_is_shown_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Progress(f"{ESCAPES}: read", 1, "answers").update(1, ESCAPES)
    said = capsys.readouterr().err
    assert controls(said) == [] and "1/1 answers" in said and len(said.splitlines()) == 1


def test_a_sentence_ends_the_line_that_is_rewritten(screen: Screen) -> None:
    log_to_terminal()
    progress = Progress("train", 3, "steps")
    progress.update(1)
    logging.getLogger("gpo").info("a sampler was lost")
    progress.update(2)
    say("gpo: interrupted")
    progress.update(3)
    logging.getLogger("gpo").info("the end")
    kinds = [line.partition(" ")[0] for line in lines_on(screen)]
    assert kinds == ["train", "a", "train", "gpo:", "train", "the"]
    assert screen.getvalue().count("\n") == 6, "no empty line either"


def test_two_stages_do_not_write_over_each_other(screen: Screen) -> None:
    first, second = Progress("first", 2, "steps"), Progress("second", 2, "steps")
    first.update(1)
    second.update(1)
    second.update(2)
    assert [line.split()[0] for line in lines_on(screen)] == ["first", "second"]


def test_what_an_earlier_start_did_does_not_count_in_the_rate(clock: Clock, screen: Screen) -> None:
    progress = Progress("generate", 1000, "prompts")
    clock.now += 10
    progress.update(900)
    assert "/s" not in lines_on(screen)[-1] and "left" not in lines_on(screen)[-1]
    clock.now += 10
    progress.update(920)
    assert "2.0/s, 40 s left" in lines_on(screen)[-1]
    clock.now += 40
    progress.update(1000, "fine")
    assert lines_on(screen)[-1].endswith("1000/1000 prompts, 2.0/s, 60 s, fine")


def test_updates_of_the_same_moment_tell_no_rate(clock: Clock, screen: Screen) -> None:
    progress = Progress("generate", 96, "prompts")
    for seconds, done in ((20.0, 32), (0.0, 40), (0.1, 64)):
        clock.now += seconds
        progress.update(done)
        assert "/s" not in lines_on(screen)[-1]
    progress.update(96)
    assert lines_on(screen)[-1].endswith("96/96 prompts, 20 s")


def test_an_update_at_the_start_makes_the_second_one_tell_the_rate(clock: Clock, screen: Screen) -> None:
    progress = Progress("train", 10, "steps")
    progress.update(4)
    clock.now += 2
    progress.update(5)
    assert "0.5/s, 10 s left" in lines_on(screen)[-1]


def test_plain_lines_are_few(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score", 100, "rows")
    for done in range(1, 101):
        clock.now += 1
        progress.update(done)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7 and said[-1].startswith("score [########################] 100/100 rows, 1.0/s, 100 s")


@pytest.mark.parametrize("width", [5, 20, 40, 60, 79, 200])
@pytest.mark.parametrize("title", ["iteration 12: generate", "名前" * 30, "x" * 300])
def test_a_line_is_never_wider_than_the_terminal(title: str, width: int) -> None:
    numbers = "512/1000 prompts, 2.0/s, 244 s left"
    line = fitted(title, "#" * 24, numbers, width)
    assert cell_len(line) <= width
    if width > 40:
        assert line.endswith(numbers), "a long name takes no room from the numbers"
    if width == 200 and len(title) < 100:
        assert line == f"{title} [{'#' * 24}] {numbers}"


def test_the_width_is_that_of_the_terminal_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    try:
        monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=SimpleNamespace(fileno=lambda: follower)))
        assert logs._width() == 80, "it has not been told its size"
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 57, 0, 0))
        assert logs._width() == 57
    finally:
        os.close(leader)
        os.close(follower)
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=io.StringIO()))
    assert logs._width() == 80
