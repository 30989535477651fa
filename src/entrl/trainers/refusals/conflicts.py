"""Which controllers go together, and with which loss; what is peculiar to one of them it says itself (`conflicts`)."""

import math
from collections.abc import Sequence
from typing import Any

from entrl.controllers.hooks import Controller, LossSettings, Role

TRL_DEFAULT_EPSILON = 0.2  # GRPOConfig.epsilon; a user who left it there has asked for nothing
ROLE_CLASHES: dict[Role, str] = {
    "advantage": "both replace the advantages, so the second would undo the first",
    "weight": "each is defined for the unweighted policy term, and the product of two weights is neither method",
    "penalty": "each holds its own selection near the sampling policy, and one token would be held twice",
    "outside_clip": "each says what gradient a token beyond the clip gets, and there is one",
    "reference_kl": "both set the coefficient of the one KL term",
}


def loss_problems(args: Any, controller: Controller) -> list[str]:
    """Where a controller that acts on the loss is not defined for this one."""
    out, name = [], controller.name
    if args.loss_type not in controller.supported_losses:
        out.append(
            f"{name} is not defined for loss_type={args.loss_type!r}; "
            f"use one of {', '.join(sorted(controller.supported_losses))}"
        )
    if args.importance_sampling_level != "token":
        out.append(
            f"{name} weighs single tokens, which has no meaning with importance_sampling_level="
            f"{args.importance_sampling_level!r} (one ratio per sequence); set importance_sampling_level: token"
        )
    if controller.needs_reference and not args.beta:
        out.append(
            f"{name} sets the coefficient of the KL to the reference model, and beta={args.beta} means there is "
            "neither; set trainer.beta above 0 (ARES has 0.01), or leave the controller out"
        )
    return out


def combination_problems(args: Any, controllers: Sequence[Controller]) -> list[str]:
    """Where controllers cannot act together, or not beside the trainer's own options."""
    names = [c.name for c in controllers]
    out = [
        f"two controllers are called {name}, so their metrics would be one; keep one of them"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    out += _clip_conflicts(args, [c for c in controllers if c.uses_loss_hook]) + _role_conflicts(controllers)
    for controller in controllers:
        out += controller.conflicts(_loss_beside(controller, args, controllers))
    return out


def _role_conflicts(controllers: Sequence[Controller]) -> list[str]:
    """Controllers of different roles act on different factors of the loss and compose; of one role they do not."""
    by_role: dict[Role, list[str]] = {}
    for controller in controllers:
        if controller.role is not None and controller.name not in by_role.setdefault(controller.role, []):
            by_role[controller.role].append(controller.name)
    return [
        f"{' and '.join(names)} cannot be combined: {ROLE_CLASHES[role]}; keep one of them"
        for role, names in by_role.items()
        if len(names) > 1
    ]


def _loss_beside(controller: Controller, args: Any, controllers: Sequence[Controller]) -> LossSettings:
    """The ratio range is a controller's own where one has it, else the trainer's."""
    low, high = args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high
    owner = next((c for c in controllers if c.uses_loss_hook and c.clip_range is not None), None)
    if owner is not None and owner.clip_range is not None:
        low, high = owner.clip_range
    return LossSettings(
        others=[c for c in controllers if c is not controller],
        eps_low=low,
        eps_high=high,
        clip_owner="the trainer" if owner is None else owner.name,
        delta=args.delta,
        sampler_ratio=getattr(args, "sampler_ratio", False),
    )


def _clip_conflicts(args: Any, controllers: Sequence[Controller]) -> list[str]:
    wanted = {c.name: c.clip_range for c in controllers if c.clip_range is not None}
    if len(set(wanted.values())) > 1:
        return [f"controllers ask for different clip ranges {wanted}; they cannot be combined, drop one"]
    if not wanted:
        return []
    name, (low, high) = next(iter(wanted.items()))
    given_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    untouched = args.epsilon == TRL_DEFAULT_EPSILON and args.epsilon_high is None and args.delta is None
    agrees = math.isclose(args.epsilon, low) and math.isclose(given_high, high) and args.delta is None
    if untouched or agrees:
        return []
    return [
        f"{name} sets the ratio range itself (eps_low={low}, eps_high={high}), but trainer says epsilon="
        f"{args.epsilon}, epsilon_high={args.epsilon_high}, delta={args.delta}; leave the three out, or set clip_low "
        f"/ clip_high of {name} to what you want"
    ]
