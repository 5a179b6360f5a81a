"""Learn a ranking policy from the log of decisions."""

from collections.abc import Sequence

from ml.experiments.decisions import LoggedDecision
from ml.experiments.ranking import Learner
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row


def train(decisions: Sequence[LoggedDecision], *, name: str = "tips") -> bytes:
    """Return a policy, to be kept in a file or a registry, that has learned from each tip shown, in order of time.

    The same decisions give the same policy, byte by byte. Raises ValueError for none.
    """
    if not decisions:
        raise ValueError("there is nothing to learn from")
    in_time = sorted(decisions, key=lambda decision: (decision.at, decision.id))
    shown = [decision.candidates[decision.chosen] for decision in in_time]
    versions = sorted({candidate.prompt_version for candidate in shown})
    space = candidate_encoder(versions)
    contexts = CONTEXT_ENCODER.encode_rows([{**decision.signals, **decision.aggregates} for decision in in_time])
    tips = space.encode_rows([candidate_row(candidate.prompt_version, candidate.tip) for candidate in shown])
    learner = Learner(CONTEXT_ENCODER.columns, space.columns)
    for decision, context, tip in zip(in_time, contexts, tips, strict=True):
        learner.learn(context, tip, decision.reward)
    return learner.policy(name, versions=versions, learned_from=len(in_time), trained_until=in_time[-1].at)
