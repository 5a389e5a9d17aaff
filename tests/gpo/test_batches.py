"""Batches of whole prompts: every row once an epoch, in a plan that seed and epoch alone decide.

Run: python -m pytest tests/gpo/test_batches.py
"""

from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpo.trainer import ROW_COLUMNS, PromptBatches, RowCollator
from tests.gpo.small_training import TOKENIZER, make_rows, make_trainer


class Recorder(RowCollator):
    """Keeps the row numbers of every batch it makes."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER.pad_token_id)
        self.batches: list[list[int]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.batches.append([row["row"] for row in rows])
        return super().__call__(rows)


def epochs_of(recorder: Recorder, batches_an_epoch: int) -> list[list[list[int]]]:
    made = recorder.batches
    return [made[start : start + batches_an_epoch] for start in range(0, len(made), batches_an_epoch)]


def test_batches_hold_whole_prompts_and_every_row_once_an_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    rows = make_rows(prompts=7, samples=3)
    make_trainer(tmp_path, rows, data_collator=recorder, num_train_epochs=3).train()
    reference, *epochs = epochs_of(recorder, batches_an_epoch=4)
    assert len(epochs) == 3 and reference == epochs[0]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(21))
        for batch in epoch:
            assert set(Counter(rows[row]["prompt_id"] for row in batch).values()) == {3}
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_plan_repeats_for_the_same_seed_and_not_for_another(tmp_path: Path) -> None:
    plans = []
    for seed in (3, 3, 4):
        recorder = Recorder()
        make_trainer(tmp_path, data_collator=recorder, num_train_epochs=2, seed=seed).train()
        plans.append(recorder.batches)
    assert plans[0] == plans[1] != plans[2]


def test_prompts_without_an_id_are_kept_together_by_their_token_ids(tmp_path: Path) -> None:
    recorder = Recorder()
    rows = [{name: row[name] for name in ROW_COLUMNS} for row in make_rows()]
    make_trainer(tmp_path, rows, data_collator=recorder)
    for batch in recorder.batches:
        assert set(Counter(str(rows[row]["prompt_ids"]) for row in batch).values()) == {3}


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=40)


@given(sizes, st.integers(1, 5), st.integers(0, 99), st.integers(0, 3), st.data())
def test_any_plan_covers_every_row_once_in_whole_prompts(
    sizes: list[int], batch_prompts: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    groups = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=sum(sizes), max_size=sum(sizes)))
    plan = PromptBatches(groups, lengths, batch_prompts, seed)
    plan.set_epoch(epoch)
    batches = list(plan)
    assert len(batches) == len(plan) and list(plan) == batches
    assert sorted(row for batch in batches for row in batch) == list(range(sum(sizes)))
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    for batch in batches:
        held = {group_of[row] for row in batch}
        assert len(held) <= batch_prompts and len(batch) == sum(sizes[number] for number in held)


def test_a_batch_is_padded_on_the_right_and_marks_prompt_answer_and_padding() -> None:
    rows = [
        {"prompt_ids": [5, 6], "completion_ids": [7], "target": 0.5, "row": 1},
        {"prompt_ids": [8], "completion_ids": [9, 10, 11], "target": -0.5, "row": 0},
    ]
    batch = RowCollator(99)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 99], [8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch["target"].tolist() == [0.5, -0.5] and batch["row"].tolist() == [1, 0]
    assert "ref_logps" not in batch
