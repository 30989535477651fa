"""Which curves the report draws, in which order, and what each metric means.

A chart names the metrics it can draw as patterns (`*` matches anything). Each run contributes the metrics it logged; a
chart that no run can fill is left out. What a metric is called, and its unit: `entrl.report.words`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from entrl.report.words import words


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    metrics: tuple[str, ...]  # names or patterns; every match is one line of the chart
    note: str = ""  # token set or reading help, shown under the title
    each: bool = False  # one chart per match, titled by the metric


SECTIONS: tuple[tuple[str, tuple[Chart, ...]], ...] = (
    (
        "Reward and accuracy",
        (
            Chart(title="Reward", metrics=("reward",), note="weighted sum, mean over completions"),
            Chart(
                title="Accuracy",
                metrics=("rewards/accuracy/mean", "rewards/Accuracy/mean", "pear/correct"),
                note="training samples, not the evaluation",
            ),
            Chart(title="Reward terms", metrics=("rewards/*/mean",), each=True),
            Chart(title="PEAR penalty", metrics=("pear/penalty",)),
            Chart(
                title="Groups without spread",
                metrics=("groups/without_spread",),
                note="all rewards equal, so no gradient",
            ),
        ),
    ),
    (
        "Length",
        (
            Chart(title="Completion length", metrics=("completions/mean_length",)),
            Chart(
                title="Truncated completions",
                metrics=("completions/clipped_ratio",),
                note="hit the length limit",
            ),
            Chart(title="Missing closing tag", metrics=("pear/missing_close",)),
            Chart(title="Thinking share", metrics=("pear/think_share",)),
        ),
    ),
    (
        "Asking",
        (
            Chart(title="Right answers", metrics=("information_gain/success",)),
            Chart(
                title="Questions",
                metrics=("information_gain/questions", "information_gain/repeats"),
                note="and those that were asked before",
            ),
            Chart(
                title="Gain",
                metrics=("information_gain/realised", "information_gain/expected"),
                note="of what the model saw; their difference is luck",
            ),
            Chart(title="Credit of a turn", metrics=("turns/credit_abs",), note="mean size, before its weight"),
        ),
    ),
    (
        "Entropy",
        (
            Chart(
                title="Policy entropy",
                metrics=("policy_entropy/token_mean", "policy_entropy/response_mean", "entropy"),
                note="full vocabulary; entropy is TRL's own",
            ),
            Chart(
                title="Entropy by phase",
                metrics=("policy_entropy/think", "policy_entropy/answer", "pear/h_think", "pear/h_answer"),
                note="mean over a phase's tokens; policy_entropy before the update, pear at the rollout",
            ),
            Chart(
                title="Sequence diversity",
                metrics=("diversity/edit_distance", "diversity/distinct_*", "diversity/unique"),
                note="between the completions of a prompt; can be high where entropy per token is low",
            ),
            Chart(
                title="Fixed probe prefixes",
                metrics=("probe/entropy", "probe/within", "probe/occupancy"),
                note="entropy in states that never change; the rollout's change since the start, within states and "
                "by visiting others",
            ),
        ),
    ),
    (
        "Covariance and controllers",
        (
            Chart(
                title="Covariance, mean",
                metrics=("*/cov_mean", "dynamics/state_cov"),
                note="of log-probability and advantage; > 0 predicts falling entropy. state_cov: centred in each state",
            ),
            Chart(
                title="Covariance, top shares",
                metrics=("*/cov_top_*%",),
                note="mean over the top share",
            ),
            Chart(
                title="Top shares, negative advantage",
                metrics=("*/cov_top_*%_negative",),
                note="tokens of below-average completions among those with the largest covariance",
            ),
            Chart(title="Selected tokens", metrics=("*/selected",)),
            Chart(title="Selected fraction", metrics=("*/selected_fraction",)),
            Chart(
                title="Selected, negative advantage",
                metrics=("*/selected_negative_advantage",),
            ),
            Chart(title="Guard knob", metrics=("*/guard_knob",), note="the option the guard moves"),
            Chart(
                title="Guard, entropy held",
                metrics=("*/guard_share",),
                note="smoothed entropy; the band is the run's option",
            ),
            Chart(
                title="Guard alarm",
                metrics=("*/guard_alarm", "*/guard_at_limit"),
                note="-1 collapse, +1 surge; at_limit: the knob is at its minimum or maximum",
            ),
            Chart(
                title="Entropy coefficient",
                metrics=("entropy_coef",),
                note="TRL's bonus, fixed or adaptive",
            ),
        ),
    ),
    (
        "Difficulty",
        (
            Chart(
                title="Prompts by difficulty",
                metrics=("ares/*/prompts",),
                note="easy, medium, hard by the group's share of right answers, so buckets move with the policy",
            ),
            Chart(title="Length by difficulty", metrics=("ares/*/length",)),
            Chart(title="Accuracy by difficulty", metrics=("ares/*/accuracy",)),
            Chart(
                title="High-entropy windows",
                metrics=("ares/*/windows", "ares/*/target"),
                note="counted, and what each difficulty is used to",
            ),
            Chart(title="Window threshold", metrics=("ares/threshold", "branch/threshold")),
            Chart(
                title="Wrong above right",
                metrics=("ares/wrong_above_right",),
                note="that earn more than the worst right one of their group",
            ),
            Chart(
                title="KL to the reference",
                metrics=("dynamic_kl/kl_easy", "dynamic_kl/kl_medium", "dynamic_kl/kl_hard"),
            ),
            Chart(title="KL coefficient", metrics=("dynamic_kl/multiplier_*",)),
            Chart(
                title="Forks and copies",
                metrics=("branch/roots", "branch/forks", "branch/copies"),
                note="completions written whole, continued from a root's prefix, repeated",
            ),
            Chart(title="Generated tokens", metrics=("branch/generated_tokens",)),
            Chart(
                title="Groups that pass the filter",
                metrics=("filter/pass_rate",),
                note="the others were replaced by groups of new prompts",
            ),
        ),
    ),
    (
        "The law R = -a exp(H) + b",
        (
            Chart(
                title="Law ceiling",
                metrics=("law/ceiling", "law/ceiling_lo", "law/ceiling_hi"),
                note="accuracy at entropy 0 by the fit so far, with its interval; no fit under an intervention",
            ),
        ),
    ),
    (
        "Engine and trainer",
        (
            Chart(
                title="Log-prob gap",
                metrics=("sampler/gap", "sampler/entropy_gap", "staleness/*/abs_log_ratio"),
                note="mean |trainer - sampler|; staleness: by versions of age, asynchronous runs",
            ),
            Chart(
                title="Ratio left alone",
                metrics=("sampler/kept",),
                note="tokens whose importance ratio the correction neither cut nor dropped",
            ),
            Chart(
                title="The same by length",
                metrics=("sampler/kept_by_length/1", "sampler/kept_by_length/5", "sampler/kept_by_length/10"),
                note="shortest tenth, fifth tenth and longest tenth of the completions",
            ),
            Chart(
                title="The same by entropy",
                metrics=("sampler/kept_by_entropy/1", "sampler/kept_by_entropy/5", "sampler/kept_by_entropy/10"),
                note="most certain, fifth and least certain tenth of the tokens",
            ),
            Chart(
                title="Kept mass",
                metrics=("sampler/kept_mass",),
                note="of the distribution sampled from; 1 without top-p, top-k, Top-H",
            ),
            Chart(title="Weight sync", metrics=("vllm/sync_seconds",)),
        ),
    ),
    (
        "Optimisation",
        (
            Chart(
                title="Clip ratio",
                metrics=("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"),
            ),
            Chart(title="Gradient norm", metrics=("grad_norm",)),
            Chart(title="KL to the reference", metrics=("kl",)),
            Chart(title="Loss", metrics=("loss",)),
            Chart(title="Learning rate", metrics=("learning_rate",)),
        ),
    ),
)


def lay_out(names: Iterable[str]) -> list[dict[str, object]]:
    """Sections of charts for the metrics some run logged; a section without a chart is left out."""
    names = list(names)
    sections = [{"title": title, "charts": _drawn(charts, names)} for title, charts in SECTIONS]
    return [section for section in sections if section["charts"]]


def _drawn(charts: tuple[Chart, ...], names: list[str]) -> list[dict[str, object]]:
    drawn: list[dict[str, object]] = []
    used: set[str] = set()
    for chart in charts:
        found = [name for pattern in chart.metrics for name in names if fnmatchcase(name, pattern)]
        found = [name for name in dict.fromkeys(found) if not (chart.each and name in used)]
        used.update(found)
        if chart.each:
            drawn += [
                {"title": words(name).title, "unit": words(name).unit, "note": "", "metrics": [name]} for name in found
            ]
        elif found:
            drawn.append({"title": chart.title, "unit": words(found[0]).unit, "note": chart.note, "metrics": found})
    return drawn
