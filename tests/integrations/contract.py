"""The contract suite's table in docs/guides/integrations.md: which property is tested in which trainer.

python -m tests.integrations.contract        write it again
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "integrations.md"
FIRST, LAST = "<!-- contract: begin -->\n", "<!-- contract: end -->\n"

COLUMNS = {
    "plain": "plain loop",
    "accelerate": "accelerate",
    "fabric": "Fabric",
    "transformers": "transformers' Trainer",
    "lightning": "Lightning's Trainer",
    "sharded": "FSDP2, tensor parallelism, both",
}


@dataclass(frozen=True)
class Cell:
    """One property in one trainer.

    Attributes:
        told: what the table says.
        test: the test that holds it, as ``module.function``, of this folder or from ``tests`` on; None for none.
    """

    told: str
    test: str | None = None


OWN_LOOP = Cell("as the plain loop: its owner's")
ROWS = "test_contract.test_the_rows_are_those_of_a_plain_loop"
SURVIVES = "test_contract.test_the_trace_survives_an_error"


def same(told: str, test: str, *trainers: str, **others: Cell) -> dict[str, Cell]:
    """One test for several trainers, and other cells for the others."""
    return {**dict.fromkeys(trainers, Cell(told, test)), **others}


ALL = tuple(name for name in COLUMNS if name != "sharded")
OTHERS = tuple(name for name in ALL if name != "plain")
SHARDED = "tests.probes.rows.test_sharded."
STOPPED = "test_all_ranks_stop_in_the_same_step_and_the_first_alone_is_told"
SAME_AS_WHOLE = Cell("within 1e-5", f"{SHARDED}test_rows_of_sharded_tensors_are_those_of_whole_tensors")
IS_MEASURE = Cell("it is the measure")
REFUSED = Cell("refused by name", "tests.test_whole_tensors.test_a_dtensor_is_refused_where_whole_tensors_are_needed")

CONTRACT: dict[str, dict[str, Cell]] = {
    "rows are those of a plain loop": same("same bits", ROWS, *OTHERS, plain=IS_MEASURE, sharded=SAME_AS_WHOLE),
    "gradients accumulated": same("within 1e-6", ROWS, *OTHERS, plain=IS_MEASURE, sharded=OWN_LOOP),
    "gradients clipped: norm before, factor, norm after": same(
        "within 1e-6", ROWS, *OTHERS, plain=IS_MEASURE, sharded=SAME_AS_WHOLE
    ),
    "the training is the same with and without": same(
        "same bits",
        "test_contract.test_the_training_is_the_same_with_and_without",
        *ALL,
        sharded=Cell("same bits", f"{SHARDED}test_rows_of_sharded_tensors_are_those_of_whole_tensors"),
    ),
    "an exception, Ctrl+C": same(
        "trace whole, status right",
        SURVIVES,
        "plain",
        "accelerate",
        "fabric",
        "lightning",
        transformers=Cell(
            "trace whole, status right, at the end of the script",
            "test_contract.test_the_trace_survives_an_error_that_no_call_back_is_told_of",
        ),
        sharded=Cell(
            "trace whole but for `layers` since the last flush, status right",
            f"{SHARDED}test_a_shards_figures_are_never_written_as_the_whole_tensors",
        ),
    ),
    "a finding of `stop_on` ends the training": same(
        "trace whole",
        "test_contract.test_a_finding_ends_the_training",
        *ALL,
        sharded=Cell("tests/probes, by two ranks"),
    ),
    "SIGTERM": {
        "plain": Cell("rows up to the last flush; tested by killing `train`"),
        "accelerate": OWN_LOOP,
        "fabric": OWN_LOOP,
        "transformers": Cell("rows up to the last flush", "test_contract.test_the_trace_survives_sigterm"),
        "lightning": Cell("trace whole, interrupted", "test_contract.test_the_trace_survives_sigterm"),
        "sharded": OWN_LOOP,
    },
    "goes on from a checkpoint in the same trace": {
        "plain": Cell("`resume=`; tests/probes"),
        "accelerate": OWN_LOOP,
        "fabric": OWN_LOOP,
        "transformers": Cell(
            "same bits",
            "test_transformers.test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_same_trace",
        ),
        "lightning": Cell(
            "within 1e-6", "test_lightning.test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_same_trace"
        ),
        "sharded": OWN_LOOP,
    },
    "evaluation's figures in `epochs`": {
        "plain": Cell("`rec.log_epoch`; tests/probes"),
        "accelerate": OWN_LOOP,
        "fabric": OWN_LOOP,
        "transformers": Cell("tested", "test_transformers.test_evaluations_stand_in_the_epochs"),
        "lightning": Cell("tested", "test_lightning.test_metrics_of_the_validation_stand_in_the_epochs"),
        "sharded": OWN_LOOP,
    },
    "two ranks (DDP) against one process": same(
        "within 1e-5",
        "test_ranks.test_two_ranks_record_what_one_process_does",
        *ALL,
        sharded=Cell("2 and 4 ranks, within 1e-5", SAME_AS_WHOLE.test),
    ),
    "sharpness measured in training": same(
        "within 1e-5",
        "test_contract.test_sharpness_is_measured_as_in_a_plain_loop",
        *OTHERS,
        plain=IS_MEASURE,
        sharded=REFUSED,
    ),
    "sharpness measured on two ranks": same(
        "within 1e-5", "test_ranks.test_two_ranks_measure_the_sharpness_that_one_process_does", *ALL, sharded=REFUSED
    ),
    "several optimizers": {
        "plain": Cell("tests/probes"),
        "accelerate": OWN_LOOP,
        "fabric": OWN_LOOP,
        "transformers": Cell("the Trainer has one"),
        "lightning": Cell(
            "by turns, by hand",
            "test_lightning.test_optimizers_that_step_by_hand_have_their_rows_in_each_batch",
        ),
        "sharded": OWN_LOOP,
    },
    "tokens counted, the loss weighed by them": {
        "plain": Cell("`rec.log(tokens=)`; tests/probes"),
        "accelerate": OWN_LOOP,
        "fabric": OWN_LOOP,
        "transformers": Cell(
            "tested",
            "test_transformers.test_the_loss_of_a_language_model_is_the_mean_over_the_tokens_of_the_whole_update",
        ),
        "lightning": Cell("not told: a LightningModule has no word for it"),
        "sharded": OWN_LOOP,
    },
}


def table() -> str:
    """The table in Markdown."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells[t].told for t in COLUMNS) + " |" for name, cells in CONTRACT.items()]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/guides/integrations.md with the table as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(f"({FIRST}).*({LAST})", lambda found: found[1] + table() + found[2], text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
