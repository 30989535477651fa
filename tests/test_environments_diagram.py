"""Diagram specification: the prior with its rules, users who know more or less, both beliefs, and what is submitted."""

import copy
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.beliefs import Belief, Contradiction
from entrl.environments import DiagramShort, DiagramSpecification, ScoredDiagramSpecification
from entrl.environments.diagram import NOT_SURE, open_question
from entrl.environments.diagram_worlds import SLOTS, find_world, parse_specification, world_id, written
from entrl.environments.events import BadArguments
from entrl.environments.joint import JointBelief
from entrl.tasks import load_task
from entrl.tasks.inquiries import diagram_rows
from entrl_lab.replicate.belief_independence import independence_cost

SMALL = world_id(slots=["kind", "layout", "connector"])
TARGET = "kind=tree; layout=top-down; connector=lines"


def row(**changes):
    fields = {"table_id": SMALL, "target": TARGET, "expertise": "expert", "named": "", "user_noise": 0.0}
    return fields | {"max_questions": 6, "seed": 1, "prompt": [], "level": "expert"} | changes


def started(cls=DiagramSpecification, *, options=None, **changes):
    env = cls(**(options or {}))
    env.reset(**row(**changes))
    return env


STATE = (
    "_events",
    "_target",
    "_done",
    "_budget",
    "_asked",
    "_correct",
    "_score",
    "_invalid",
    "_refused",
    "_seed",
    "_noise",
    "_expertise",
)


def state(env):
    return {name: copy.deepcopy(getattr(env, name)) for name in STATE} | {
        "known": {slot: table.tolist() for slot, table in env._known.items()},
        "belief": {slot: env._marginal(slot).tolist() for slot in env._world.slots},
        "asked": env._estimator.asked,
    }


# The world


def test_every_value_belongs_to_one_slot_and_one_group():
    values = [value for groups in SLOTS.values() for group in groups for value in group]
    assert len(values) == len(set(values)) == 39
    assert [sum(map(len, groups)) for groups in SLOTS.values()] == [8, 5, 4, 4, 4, 5, 3, 3, 3]


def test_the_prior_and_its_rules():
    world = find_world(world_id())
    assert world.joint.size == 345_600
    assert world.joint.sum() == pytest.approx(1)
    joint = world.joint
    kind, layout = world.slots["kind"], world.slots["layout"]
    for one in ("timeline", "gantt"):
        shares = joint[kind.index(one)].sum(axis=tuple(range(1, 8)))
        assert shares[layout.index("left-right")] > 0
        assert np.delete(shares, layout.index("left-right")).sum() == 0, "always"
    pair = joint.sum(axis=(0, 2, 4, 5, 6, 7, 8))  # layout x connector
    undirected = pair[:, [world.slots["connector"].index(v) for v in ("lines", "dashes")]].sum(1) / pair.sum(1)
    assert undirected[layout.index("radial")] > 2 * undirected[layout.index("grid")]
    labels = joint.sum(axis=(0, 1, 3, 4, 5, 7, 8))  # components x labels
    sparse = labels[:, world.slots["labels"].index("sparse")] / labels.sum(1)
    assert sparse[2:].min() > 2 * sparse[0]


def test_dependence_is_measurable_and_nothing_without_rules():
    assert 0.5 < find_world(world_id()).dependence_bits() < 2
    assert find_world(world_id(dependencies=False)).dependence_bits() == pytest.approx(0, abs=1e-9)
    assert find_world(world_id(world=1)).dependence_bits() != find_world(world_id()).dependence_bits()


def test_targets_follow_the_prior_and_are_never_impossible():
    games = load_task({"task": "diagram", "slots": 2}, size=2000)
    world = find_world(games[0]["table_id"])
    counts = np.zeros(world.joint.shape)
    for target in games["target"]:
        counts[tuple(world.slots[s].index(v) for s, v in parse_specification(target, world.slots).items())] += 1
    assert counts[world.joint == 0].sum() == 0
    deviation = counts / 2000 - world.joint
    error = np.sqrt(world.joint * (1 - world.joint) / 2000)
    assert (np.abs(deviation) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": 0}, "slots must be in 1..9"),
        ({"slots": 10}, "slots must be in 1..9"),
        ({"slots": True}, "number or a list"),
        ({"slots": "kind"}, "number or a list"),
        ({"slots": []}, "slots is empty"),
        ({"slots": ["colour"]}, "no slot 'colour'"),
        ({"slots": ["kinds"]}, "Did you mean 'kind'"),
        ({"world": -1}, "world must be a whole number"),
    ],
)
def test_worlds_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        world_id(**arguments)


@pytest.mark.parametrize("name", ["diagram", "diagram:world=0,slots=kind+kind,dependencies=1", "animals"])
def test_ids_that_name_no_world(name):
    with pytest.raises(ValueError, match="unknown diagram world"):
        find_world(name)


# Beliefs


@pytest.mark.parametrize("expertise", ["expert", "intermediate", "novice"])
def test_the_exact_belief_is_bayes_over_all_combinations(expertise):
    """The slow twin: every combination a named hypothesis, the likelihood a (K, A) table."""
    env = started(options={"belief": "exact"}, expertise=expertise, user_noise=0.1, max_questions=9)
    combinations = list(itertools.product(*env._world.slots.values()))
    slow = Belief(map(str, combinations), env._world.joint.ravel())
    target = combinations.index(tuple(env._truth.values()))
    for axis, slot in enumerate(env._world.slots):
        values = env._world.slots[slot]
        for choice in (None, [values[0], values[2]]):
            known = env._known[slot].copy()
            asked = (
                open_question(slot) if choice is None else (("no", "yes", NOT_SURE), env._choice_table(slot, choice))
            )
            answers, table = asked
            noisy = 0.9 * table + 0.1 * (table.sum(0) - table) / (len(values) - 1)
            likelihood = (known[:, :, None] * noisy).sum(1)
            rows = likelihood[[values.index(combination[axis]) for combination in combinations]]
            env.ask(slot) if choice is None else env.ask_choice(slot, choice)
            event = env._events[-1]
            step = slow.update(rows, answers.index(event.answer), target=target)
            for name in ("h_before", "h_after", "realised", "kl", "expected", "evidence_bits", "target_log_gain"):
                assert getattr(event.step, name) == pytest.approx(getattr(step, name), abs=1e-9), name
    assert env._estimator.entropy() == pytest.approx(slow.entropy())


def test_without_rules_both_beliefs_agree():
    place = world_id(slots=4, dependencies=False)
    target = written({slot: values[1] for slot, values in find_world(place).slots.items()})
    events = []
    for belief in ("factored", "exact"):
        env = started(options={"belief": belief}, table_id=place, target=target, expertise="novice", named="layout")
        for slot in env._world.slots:
            env.ask(slot)
        env.ask_choice("kind", ["swimlane", "tree"])
        events.append(env._events)
    for one, other in zip(*events, strict=True):
        assert one.observation == other.observation
        assert one.resolved == other.resolved
        assert one.best_expected == pytest.approx(other.best_expected, abs=1e-9)
        for name in ("realised", "kl", "expected", "target_log_gain"):
            assert getattr(one.step, name) == pytest.approx(getattr(other.step, name), abs=1e-9)


def test_independence_overstates_by_exactly_the_dependence():
    """An expert asked about every slot: factored gains sum to the slots' entropies, the exact ones to the joint's."""
    totals = []
    for belief in ("factored", "exact"):
        env = started(options={"belief": belief})
        for slot in env._world.slots:
            env.ask(slot)
        assert env._estimator.entropy() == pytest.approx(0, abs=1e-9)
        totals.append(sum(env._gains("realised")))
    assert totals[0] - totals[1] == pytest.approx(find_world(SMALL).dependence_bits())
    assert totals[0] > totals[1]


def test_the_exact_belief_knows_that_a_timeline_goes_left_to_right():
    target = "kind=timeline; layout=left-right; connector=lines"
    for belief, resolved, worth in (("exact", 2, False), ("factored", 1, True)):
        env = started(options={"belief": belief}, target=target)
        env.ask("kind")
        assert env._events[-1].resolved == resolved
        env.ask("layout")
        assert (env._events[-1].step.expected > 1e-9) is worth


def test_the_opening_request_is_known_from_the_start():
    for belief in ("factored", "exact"):
        env = started(
            options={"belief": belief}, target="kind=timeline; layout=left-right; connector=lines", named="kind"
        )
        assert env._certain() == ({"kind"} if belief == "factored" else {"kind", "layout"})
        assert env._prior_entropy() == env._estimator.entropy()
        env.ask("kind")
        assert env._events[0].step.realised == pytest.approx(0, abs=1e-12)
        assert env._events[0].step.expected == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("belief", ["factored", "exact"])
@pytest.mark.parametrize("expertise", ["intermediate", "novice"])
def test_expected_gain_is_the_mean_of_realised_gain(belief, expertise):
    """Over users of the prior, also for a second question about a slot, whose worth depends on what the first one told
    about the user; 4 standard errors. A belief that forgot the user's state would be expected to gain from "not sure".
    Without rules: with them, a factored belief is wrong on purpose.
    """
    options = {"task": "diagram", "slots": 2, "expertise": expertise, "opening": False, "user_noise": 0.1}
    games = load_task({**options, "dependencies": belief == "exact"}, size=250)
    gaps: list[list[float]] = [[], [], []]
    env = DiagramSpecification(belief=belief)
    for game in games:
        env.reset(**game)
        env.ask("kind")
        env.ask_choice("kind", ["flowchart", "tree", "venn"])
        env.ask("layout")
        for gap, event in zip(gaps, env._events, strict=True):
            gap.append(event.step.realised - event.step.expected)
    for gap in gaps:
        assert abs(np.mean(gap)) <= 4 * np.std(gap, ddof=1) / np.sqrt(len(gap))


# Users


def shares(expertise, **options):
    """How often 300 users name the value, a group, or nothing, for a value in a group of two."""
    found = {"value": 0, "group": 0, NOT_SURE: 0}
    for seed in range(300):
        env = started(options=options, expertise=expertise, seed=seed)
        env.ask("kind")
        answer = env._events[0].answer
        assert answer in ("tree", "tree or network", NOT_SURE)
        found["value" if answer == "tree" else "group" if " or " in answer else NOT_SURE] += 1
    return {kind: count / 300 for kind, count in found.items()}


def test_users_say_what_they_know():
    """4 standard errors are 0.11."""
    assert shares("expert") == {"value": 1, "group": 0, NOT_SURE: 0}
    middle = shares("intermediate", coarse=0.3)
    assert middle["group"] == pytest.approx(0.3, abs=0.11)
    assert middle[NOT_SURE] == 0
    novice = shares("novice", unsure=0.6)
    assert novice[NOT_SURE] == pytest.approx(0.6, abs=0.11)
    assert novice["value"] == 0


def test_not_sure_tells_nothing_and_asking_on_is_worth_nothing():
    env = started(options={"unsure": 1.0}, expertise="novice")
    for number, question in enumerate(("ask", "choice", "other choice"), 1):
        options = {"choice": ["tree"], "other choice": ["venn", "gantt"]}.get(question)
        text = env.ask("kind") if options is None else env.ask_choice("kind", options)
        assert text == f"Question {number} of 6: not sure"
    assert [event.step.realised for event in env._events] == [0, 0, 0]
    assert [event.step.expected for event in env._events] == [0, 0, 0]


def test_after_not_sure_the_belief_knows_the_user():
    """A novice of whom nothing is known yet could tell something; once not sure, a further question is worth 0."""
    env = next(e for e in (started(expertise="novice", seed=s) for s in range(50)) if "not sure" in e.ask("kind"))
    assert env._events[0].step.expected > 0.5
    assert env._events[0].step.realised == pytest.approx(0, abs=1e-12)
    env.ask_choice("kind", ["tree", "network"])
    assert env._events[1].answer == NOT_SURE
    assert env._events[1].step.expected == pytest.approx(0, abs=1e-12)


def test_intermediate_users_recognise_what_novices_do_not():
    middle, novice = (started(options={"coarse": 1.0, "unsure": 0.0}, expertise=e) for e in ("intermediate", "novice"))
    for env in (middle, novice):
        assert env.ask("kind") == "Question 1 of 6: tree or network"
    assert middle.ask_choice("kind", ["tree"]) == "Question 2 of 6: yes"
    assert middle._events[1].resolved == 1
    assert novice.ask_choice("kind", ["tree"]) == "Question 2 of 6: not sure"
    assert novice._events[1].step.expected == pytest.approx(0, abs=1e-12)
    assert novice.ask_choice("kind", ["tree", "network", "venn"]) == "Question 3 of 6: yes"
    assert novice.ask_choice("kind", ["venn"]) == "Question 4 of 6: no"


# Calls


def test_a_dialogue_by_hand():
    env = started(max_questions=3)
    assert env.ask("Kind ") == "Question 1 of 3: tree"
    assert env.ask("kind") == "Question 2 of 3: tree (asked before)"
    assert env.ask_choice("layout", ["left-right", "TOP-DOWN"]) == "Question 3 of 3: yes"
    assert env.ask("connector") == "No questions left after 3; submit your answer."
    assert env.submit("kind=tree; layout=top-down") == "Right: 2 of 3."
    assert (env._score, env._correct, env._asked, env._refused) == (pytest.approx(2 / 3), False, 3, 1)
    assert [event.resolved for event in env._events] == [1, 0, 0, 0]
    assert env.ask("kind") == env.submit(TARGET) == "The inquiry is over."
    assert env._correct is False


def test_choices_are_repeats_in_any_order():
    env = started()
    env.ask_choice("kind", ["tree", "venn"])
    env.ask_choice("kind", "venn, tree, venn")
    assert env._events[1].repeated
    assert env._gains("realised")[1] == 0


def test_best_expected_is_the_best_open_question():
    env = started(options={"belief": "exact"})
    best = max(
        env._estimator.belief.expected_gain(slot, np.eye(len(values))) for slot, values in env._world.slots.items()
    )
    env.ask("layout")
    assert env._events[0].best_expected == pytest.approx(best)
    assert env._events[0].step.expected <= best


@pytest.mark.parametrize(
    "text",
    [
        TARGET,
        " KIND = tree;layout: Top-Down ;; connector=LINES; ",
        "kind=tree, layout=top-down\nconnector=lines",
        "tree; top-down; lines",
        ["lines", "tree"][0] + "; layout=top-down; tree",
        {"kind": "tree", "layout": "top-down", "connector": "lines"},
    ],
)
def test_specifications_are_read_as_models_write_them(text):
    env = started()
    assert env.submit(text) == "Right: 3 of 3."
    assert env._correct is True


BAD = ["", " ; ", None, 3, [], {}, ["tree"], "colour=red", "kind=top-down", "kind=", "=tree", "kind", "red",
       "kind=tree; kind=venn", {"kind": None}, {"kind": ["tree"]}, "x" * 5000]  # fmt: skip


@pytest.mark.parametrize("argument", BAD, ids=lambda value: repr(value)[:20])
def test_bad_specifications_are_told_and_can_be_mended(argument):
    env = started()
    before = state(env)
    text = env.submit(argument)
    assert text.startswith("Error: ")
    assert len(text) < 400
    after = state(env)
    assert (before.pop("_invalid"), after.pop("_invalid")) == (0, 1)
    assert before == after
    assert env.submit(TARGET) == "Right: 3 of 3."


@pytest.mark.parametrize(
    "arguments",
    [("kind", []), ("kind", None), ("kind", 3), ("kind", ["top-down"]), ("kind", [["tree"]]), ("what", ["tree"]),
     (None, ["tree"]), ("kind", ""), ("kind", {"tree": 1})],
)  # fmt: skip
def test_bad_choices_change_nothing(arguments):
    env = started()
    before = state(env)
    assert env.ask_choice(*arguments).startswith("Error: ")
    assert env.ask(arguments[1]).startswith("Error: ")
    after = state(env)
    assert after.pop("_invalid") == 2
    before.pop("_invalid")
    assert before == after


@given(seed=st.integers(0, 500), expertise=st.sampled_from(["expert", "intermediate", "novice"]))
@settings(max_examples=25, deadline=None)
def test_same_row_same_dialogue_in_any_order_and_after_any_episode(seed, expertise):
    fields = {"seed": seed, "expertise": expertise, "user_noise": 0.2}
    calls = [("kind", None), ("layout", None), ("kind", ["tree", "venn"]), ("connector", None), ("kind", None)]
    used = started(seed=seed + 1, expertise="novice", user_noise=0.5)
    used.ask("kind")
    used.submit("tree")
    used.reset(**row(**fields))
    fresh, backwards = started(**fields), started(**fields)
    for env, order in ((used, calls), (fresh, calls), (backwards, calls[:4][::-1])):
        for slot, options in order:
            env.ask(slot) if options is None else env.ask_choice(slot, options)
    assert state(used) == state(fresh)
    first = {event.key: event.answer for event in fresh._events}
    assert {event.key: event.answer for event in backwards._events} == first
    assert backwards._estimator.entropy() == pytest.approx(fresh._estimator.entropy(), abs=1e-9)


def test_interleaved_instances_share_nothing():
    rows = [row(expertise="novice", seed=s, user_noise=0.2) for s in (3, 4)]
    alone = []
    for one in rows:
        env = DiagramSpecification(belief="exact")
        env.reset(**one)
        for slot in env._world.slots:
            env.ask(slot)
        alone.append(state(env))
    pair = [DiagramSpecification(belief="exact") for _ in rows]
    for env, one in zip(pair, rows, strict=True):
        env.reset(**one)
    for slot in pair[0]._world.slots:
        for env in pair:
            env.ask(slot)
    assert [state(env) for env in pair] == alone


def raised_unchanged(env):
    """Ask on until an answer is impossible; whether the episode is what it was before that question."""
    for value in env._world.slots["kind"]:
        before = state(env)
        try:
            env.ask_choice("kind", [value])
        except Contradiction:
            return state(env) == before
    return False


@pytest.mark.parametrize("belief", ["factored", "exact"])
def test_contradictions(belief):
    """A user who always errs, and a belief that takes every answer for the truth."""
    fields = {"user_noise": 1.0, "max_questions": 20, "target": "kind=timeline; layout=left-right; connector=lines"}
    for how in ("ignore", "reset", "raise"):
        env = started(options={"belief": belief, "assumed_noise": 0.0, "on_contradiction": how}, **fields)
        env.ask("kind")
        if how == "raise":
            assert raised_unchanged(env)
            continue
        for value in env._world.slots["kind"]:
            env.ask_choice("kind", [value])
        odd = [event for event in env._events if event.contradiction]
        assert odd
        if how == "ignore":
            assert all(event.step.realised == 0 for event in odd)
        else:
            assert min(event.step.realised for event in odd) < 0
        lost = env._prior_entropy() - env._estimator.entropy()
        assert sum(env._gains("realised")) == pytest.approx(lost, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_id": 3}, "no column 'table_id'"),
        ({"table_id": "animals"}, "unknown diagram world"),
        ({"target": "kind=tree"}, "says nothing about layout, connector"),
        ({"target": "kind=pie"}, "unknown value of kind"),
        ({"target": None}, "target None"),
        ({"expertise": "guru"}, "expertise must be one of expert, intermediate, novice"),
        ({"named": "palette"}, "named slot 'palette' is not in world"),
        ({"max_questions": -3}, "'max_questions'"),
    ],
)
def test_rows_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"belief": "joint"}, "belief must be 'factored' or 'exact'"),
        ({"coarse": 1.5}, "coarse must be in"),
        ({"unsure": -0.5}, "unsure must be in"),
        ({"assumed_noise": 2}, "assumed_noise must be in"),
        ({"on_contradiction": "no"}, "on_contradiction must be one of"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DiagramSpecification(**options)


def test_the_joint_refuses_wrong_shapes_and_slots():
    with pytest.raises(ValueError, match="shape"):
        JointBelief({"a": ("x", "y")}, np.ones((3,)) / 3)
    belief = JointBelief({"a": ("x", "y")}, np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="unknown slot 'b'"):
        belief.marginal("b")
    with pytest.raises(Contradiction):
        belief.update("a", likelihood=np.array([[1.0, 0.0], [1.0, 0.0]]), answer=1)
    assert belief.probs.tolist() == [0.5, 0.5]


def test_parse_keeps_the_order_of_the_slots():
    slots = find_world(SMALL).slots
    assert written(parse_specification("lines; tree", slots)) == "kind=tree; connector=lines"
    with pytest.raises(BadArguments, match="two values for kind"):
        parse_specification("tree; venn", slots)


def test_the_short_version_has_two_tools():
    assert not hasattr(DiagramShort, "ask_choice")
    env = started(DiagramShort)
    assert env.ask("kind") == "Question 1 of 6: tree"


def test_own_reward_pays_the_share_of_slots():
    env = started(ScoredDiagramSpecification, options={"gain_weight": 0.0})
    env.submit("tree")
    assert env.get_reward() == pytest.approx(1 / 3)


# Rows


def test_rows_play_and_the_target_is_right():
    games = load_task({"task": "diagram", "expertise": "mixed", "slots": 3}, size=40)
    assert set(games["expertise"]) == {"expert", "intermediate", "novice"}
    env = DiagramSpecification()
    for game in games:
        env.reset(**game)
        text = game["prompt"][0]["content"]
        assert text.startswith(f"I need a diagram with {game['named']}={env._truth[game['named']]}. Ask me")
        assert text.endswith("components: few, several, many, dozens")
        assert game["target"] == game["answer"] == env._target
        assert env.submit(game["answer"]) == "Right: 3 of 3."
    assert load_task({"task": "diagram", "expertise": "mixed", "slots": 3}, size=7)[6] == games[6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expertise": "guru"}, "expertise must be one of"),
        ({"show": "all"}, "show must be 'values' or 'slots'"),
        ({"slots": 12}, "slots must be in 1..9"),
        ({"max_questions": 0}, "max_questions"),
        ({"slot": 3}, "no option 'slot'.*Did you mean 'slots'"),
    ],
)
def test_task_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        load_task({"task": "diagram", **options}, size=2)


def test_answers_can_name_their_slot():
    rows = diagram_rows(split="test", size=5, seed=0, slots=4)
    for row in rows:
        plain, named = DiagramShort(), DiagramSpecification(slot_in_answer=True)
        for env in (plain, named):
            env.reset(**row)
        said, told = plain.ask("layout"), named.ask("layout")
        assert told == said.replace(": ", ": layout=")
        assert named._gains() == plain._gains()
        assert "=" not in named.ask_choice("kind", ["tree", "venn"])  # which is not "what is it?"


def test_what_independence_costs_by_hand():
    """Two slots, rules between them: the joint asks no second question about a timeline's layout, and is paid less."""
    found = independence_cost(budget=2, size=40, slots=["kind", "layout"], opening=False)
    world = find_world(diagram_rows(split="test", size=1, seed=0, slots=["kind", "layout"])[0]["table_id"])
    assert found["dependence_bits"] == pytest.approx(world.dependence_bits())
    assert found["h0"]["factored"] - found["h0"]["exact"] == pytest.approx(world.dependence_bits())
    assert found["slots right"]["factored"] == found["slots right"]["exact"] == 1  # two questions tell everything
    assert found["questions"]["diff"] < 0
    # both end knowing everything, so the factored belief is overpaid by just what its prior overstates
    assert found["overpaid bits"]["diff"] == pytest.approx(world.dependence_bits())
    assert found["overpaid bits"]["lo"] == pytest.approx(found["overpaid bits"]["hi"])


def test_independence_costs_nothing_without_rules():
    found = independence_cost(budget=2, size=20, slots=3, dependencies=False)
    assert found["other questions"] == 0
    assert all(found[what]["diff"] == pytest.approx(0, abs=1e-12) for what in ("slots right", "questions"))
    assert found["overpaid bits"]["diff"] == pytest.approx(0, abs=1e-9)
