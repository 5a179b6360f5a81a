"""Off-policy evaluation of a target policy with the decision log: the gain at every look, and all estimators."""

from math import inf

from ml.experiments.arrays import PROBABILITY_TOLERANCE
from ml.experiments.decisions import DecisionLog
from ml.experiments.evaluation import dm, dr, ips, mean_weight_refusal, sndr, snips
from ml.experiments.gain_sequence import GainSequence
from ml.experiments.off_policy_sums import OffPolicySums
from ml.pipelines.evaluated_decisions import EvaluatedDecisions
from ml.pipelines.evaluation_report import EvaluationReport
from ml.pipelines.targets import Target


def evaluate(log: DecisionLog, target: Target, *, since: float = -inf, before: float = inf) -> EvaluationReport:
    """Estimate the mean reward of `target` from mature decisions, from `since` (included) to `before` (excluded).

    Which decisions are used: see `EvaluatedDecisions`. The log is read in chunks, whose sizes do not change the report.
    Raises NothingToEvaluate.
    """
    evaluated = EvaluatedDecisions(log, target, since=since, before=before)
    sums, live_sums, sequence = OffPolicySums(evaluated.n_users), OffPolicySums(evaluated.n_users), GainSequence()
    is_identical = True
    for chunk in evaluated.chunks():
        sums.add(chunk.log, chunk.model)
        live_sums.add(chunk.live_log)
        sequence.add(chunk.gain_terms[chunk.drawn_anew])
        is_identical &= bool((abs(chunk.model.target - chunk.logging) <= PROBABILITY_TOLERANCE).all())
    left_out = [*evaluated.left_out]
    if n_per_user := evaluated.n - sequence.decisions:
        left_out.append(f"The gain does not count {n_per_user:,} decisions whose version was drawn per user.")
    refusal = gain_refusal(sequence, sums)
    return EvaluationReport(
        target.name,
        evaluated.n,
        evaluated.n_users,
        ips(live_sums),
        None if refusal else sequence.interval(),
        refusal,
        is_identical,
        {"sndr": sndr(sums), "snips": snips(sums), "dr": dr(sums), "ips": ips(sums), "dm": dm(sums)},
        tuple(left_out),
    )


def gain_refusal(sequence: GainSequence, sums: OffPolicySums) -> str | None:
    """Return the reason why the gain cannot be estimated, as the end of a sentence; None if it can be.

    `sequence`: of the decisions that were drawn anew. `sums`: of all decisions.
    """
    if not sequence.decisions:
        return "all versions were drawn per user, so the decisions of a user are not drawn independently."
    return mean_weight_refusal(sums)
