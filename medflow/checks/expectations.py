"""Great Expectations 1.x, called directly and without a file: a frame in, one outcome a rule out.

Its own data docs are not used: they fetch styles and scripts from public hosts, and drop values of numpy types.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medflow.checks.rules import Rule
from medflow.errors import DataError

if TYPE_CHECKING:
    import pandas

RULE = "rule"
SEEN = 5


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations found for one rule."""

    rule: Rule
    success: bool
    evaluated: int
    """Rows whose value was looked at: nulls do not count, save where null is the question."""
    rows: np.ndarray
    """Row numbers that fail, int64, ascending."""
    observed: tuple[str, ...]
    """A few of the values that fail, as text."""


def evaluate(frame: pandas.DataFrame, rules: Sequence[Rule]) -> tuple[Outcome, ...]:
    """One outcome a rule, in the order of the rules. Raises DataError where a rule could not be evaluated."""
    results = _validate(frame, rules)
    by_number = {result.expectation_config.meta[RULE]: result for result in results}
    return tuple(_outcome(rule, by_number[number], len(frame)) for number, rule in enumerate(rules))


def version() -> str:
    import great_expectations

    return str(great_expectations.__version__)


def _validate(frame: pandas.DataFrame, rules: Sequence[Rule]) -> list[Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("manifest")
    expectations = [
        getattr(gxe, rule.expectation)(**rule.arguments, meta={RULE: number}) for number, rule in enumerate(rules)
    ]
    suite = gx.ExpectationSuite(name="manifest", expectations=expectations)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
    # Not through a ValidationDefinition: that copies every failing row number twice, into a store that nobody reads.
    return list(batch.validate(suite, result_format={"result_format": "COMPLETE"}).results)


def _outcome(rule: Rule, result: Any, images: int) -> Outcome:
    if result.exception_info.get("raised_exception"):
        raise DataError(
            f"{rule.expectation} on {rule.arguments['column']} could not be evaluated: "
            f"{result.exception_info['exception_message']}",
            hint="the manifest lacks that column or holds another type; ingest the source again",
        )
    found = result.result
    rows = np.sort(np.array(found["unexpected_index_list"], dtype=np.int64))
    values = dict.fromkeys(str(value) for value in found["partial_unexpected_list"])
    return Outcome(
        rule=rule,
        success=bool(result.success),
        evaluated=images - int(found.get("missing_count") or 0),
        rows=rows,
        observed=tuple(values)[:SEEN],
    )
