import marimo

app = marimo.App(app_title="Would the new policy have earned more")


@app.cell
def _():
    import marimo as mo
    import matplotlib.pyplot as plt

    from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
    from ml.experiments.policies import POLICIES
    from ml.experiments.thompson import RewardHistory
    from ml.pipelines.evaluation import evaluate
    from ml.pipelines.targets import RankingTarget, VersionTarget
    from ml.pipelines.training import train
    from ml.registry.artifacts import RankingPolicy
    from ml.registry.policies import LearnedPolicy
    from ml.simulation.people import LISTED_VERSIONS, visits

    return (
        InMemoryDecisionLog,
        LISTED_VERSIONS,
        LearnedPolicy,
        LoggedCandidate,
        LoggedDecision,
        POLICIES,
        RankingPolicy,
        RankingTarget,
        RewardHistory,
        VersionTarget,
        evaluate,
        mo,
        plt,
        train,
        visits,
    )


@app.cell
def _(mo):
    mo.md(
        """
        # Would the new policy have earned more

        A log of uniform draws, three weeks to train a ranking policy on and one week to evaluate it with. Users
        are simulated, so the truth is known: the dotted line is what the policy would really have earned in
        that week.
        """
    )
    return


@app.cell
def _():
    days, held_out_days, users, seed = 28, 7, 300, 2
    return days, held_out_days, seed, users


@app.cell
def _(LISTED_VERSIONS, LoggedCandidate, LoggedDecision, POLICIES, RewardHistory, days, seed, users, visits):
    policy = POLICIES["uniform"]
    options = policy.distribution(dict.fromkeys(LISTED_VERSIONS, 1.0), RewardHistory())
    candidates = tuple(LoggedCandidate(version, probability) for version, probability in options.items())
    decisions, personas = [], {}
    for day in range(days):
        for visit in visits(users, day, seed):
            version = policy.draw(options, visit.user_id, [visit.id])[0].option
            reward = float(visit.helps(version))
            at = day * 86_400 + visit.time.total_seconds()
            chosen = [*options].index(version)
            decisions.append(
                LoggedDecision(
                    visit.id, visit.user_id, at, visit.signals, {}, candidates, chosen, reward, reward, False
                )
            )
            personas[visit.id] = visit.persona
    return decisions, options, personas


@app.cell
def _(
    InMemoryDecisionLog,
    LearnedPolicy,
    RankingPolicy,
    RankingTarget,
    VersionTarget,
    days,
    decisions,
    evaluate,
    held_out_days,
    train,
):
    log, since = InMemoryDecisionLog(decisions), (days - held_out_days) * 86_400.0
    learned = RankingTarget(LearnedPolicy(RankingPolicy.from_bytes(train(log, before=since))))
    targets = {"learned": learned, "only v1": VersionTarget("v1", {"v1": 1.0})}
    reports = {name: evaluate(log, target, since=since) for name, target in targets.items()}
    return reports, since, targets


@app.cell
def _(decisions, options, personas, since, targets):
    later = [decision for decision in decisions if decision.at >= since]
    truths = {
        name: sum(
            probability * personas[decision.id].preference(version)
            for decision, distribution in zip(later, target.replay(0.0)(later), strict=True)
            for version, probability in zip(options, distribution, strict=True)
        )
        / len(later)
        for name, target in targets.items()
    }
    return (truths,)


@app.cell
def _(plt, reports, truths):
    figure, axes = plt.subplots(1, len(reports), figsize=(11, 4), sharey=True, layout="constrained")
    for panel, (name, report) in zip(axes, reports.items(), strict=True):
        rows = {"the log": report.earned, **report.estimates}
        for row, estimate in enumerate(rows.values()):
            panel.hlines(row, estimate.low, estimate.high)
            panel.plot(estimate.value, row, "o", color="C0")
        panel.axvline(truths[name], color="black", linestyle=":", label="the truth")
        panel.set_yticks(range(len(rows)), rows)
        panel.set(title=f"{name}: gain {report.gain.low:+.3f} to {report.gain.high:+.3f}", xlabel="mean reward")
        panel.legend()
    figure
    return


if __name__ == "__main__":
    app.run()
