"""Which combinations of engine, sampler and correction train what they say; refusals for the others. No engine needed.

A truncating sampler (top_p, top_k, min_p, Top-H) draws from q = p / G on the kept tokens. Log-probs and entropies of
trainer and controllers are those of p. Under vLLM the difference can be undone, because the sampler knows G.
"""

from typing import Any

from entrl.engines.servers import checked_url, checked_urls
from entrl.trainers.refusals.sampling import reshaping, without

CORRECTABLE = ("top_p", "top_k", "top_h")  # what the recorder in the engine sees or can reconstruct
SEQUENCE_MODES = ("sequence_mask", "sequence_truncate")


def vllm_problems(args: Any, *, entropy_aware: bool) -> list[str]:
    """Everything about engine and sampler that would train something else than it says; empty = all right."""
    found = reshaping(args)
    correction = getattr(args, "truncation_correction", None)
    out = _source_problems(args) + _address_problems(args)
    if correction is not None:
        out += _correction_problems(args, found, correction)
    elif found and entropy_aware and not getattr(args, "allow_truncated_sampling", False):
        given = ", ".join(f"{k}={v}" for k, v in found.items())
        undo = (
            "set truncation_correction: restore or weigh, "
            if args.use_vllm and set(found) <= set(CORRECTABLE)
            else f"{without(found, args)}, "
        )
        out.append(
            f"{given} samples from a reshaped or truncated distribution, while log-probs and entropies are those of "
            f"the full one; {undo}or set allow_truncated_sampling: true knowing this"
        )
    return out


def tool_problems(args: Any) -> list[str]:
    """What cannot be had where completions are dialogues: the engine writes them turn by turn, a call for each."""
    if not args.use_vllm:
        return []
    asked = {
        "entropy_source: sampler": getattr(args, "entropy_source", "scoring") == "sampler",
        "truncation_correction: restore": getattr(args, "truncation_correction", None) == "restore",
    }
    return [
        f"{name} reads what the sampler recorded of a completion in one call, and with tools or an environment a "
        "completion is written in several; take entropy_source: scoring, and truncation_correction: weigh"
        for name, wanted in asked.items()
        if wanted
    ]


def _source_problems(args: Any) -> list[str]:
    out = []
    replicas = getattr(args, "vllm_replicas", None)
    if getattr(args, "entropy_source", "scoring") == "sampler":
        if not args.use_vllm:
            out.append("entropy_source: sampler reads the vLLM engine; set use_vllm: true, or entropy_source: scoring")
        elif args.vllm_mode == "server" and not replicas:
            out.append(
                "entropy_source: sampler needs servers that return what the sampler recorded, and TRL's server client "
                "does not pass it on; use vllm_replicas with `entrl serve` (LoRA), vllm_mode: colocate, or "
                "entropy_source: scoring"
            )
        if args.use_vllm and args.min_p:
            out.append(
                f"entropy_source: sampler with min_p={args.min_p}: vLLM applies min_p before custom processors, so the "
                "whole distribution is not seen; leave min_p unset or take entropy_source: scoring"
            )
    if getattr(args, "top_h", None) is not None and getattr(args, "use_transformers_continuous_batching", False):
        out.append(
            "top_h cannot reach transformers' continuous batching, which takes no logits processors; set "
            "use_transformers_continuous_batching: false, or use_vllm: true"
        )
    if getattr(args, "top_h", None) is not None and args.use_vllm and args.vllm_mode == "server" and not replicas:
        out.append(
            f"top_h={args.top_h} cannot reach TRL's own server, which would sample untruncated and say nothing; use "
            "vllm_replicas with `entrl serve`, vllm_mode: colocate, or no top_h"
        )
    if replicas and getattr(args, "vllm_structured_outputs_regex", None):
        out.append("vllm_structured_outputs_regex does not reach vllm_replicas; remove it, or use vllm_mode: colocate")
    if replicas and not args.use_vllm:
        out.append("vllm_replicas are set but use_vllm is false; set use_vllm: true, or remove vllm_replicas")
    if replicas and args.use_vllm and args.vllm_mode != "server":
        out.append(f"vllm_replicas are servers, but vllm_mode is {args.vllm_mode!r}; set vllm_mode: server")
    if args.use_vllm and args.vllm_mode == "server" and not replicas and args.use_cpu:
        out.append(
            "vllm_mode: server without vllm_replicas pushes full weights over NCCL, which a CPU does not have; use "
            "vllm_replicas with a LoRA adapter, or vllm_mode: colocate"
        )
    return out


def _address_problems(args: Any) -> list[str]:
    """Servers that nobody could call."""
    replicas, own = getattr(args, "vllm_replicas", None), getattr(args, "vllm_server_base_url", None)
    try:
        if replicas:
            checked_urls(replicas)
        if own is not None and args.use_vllm and args.vllm_mode == "server" and not replicas:
            checked_url(own, key="trainer.vllm_server_base_url")
    except ValueError as error:
        return [str(error)]
    return []


def _correction_problems(args: Any, found: dict[str, Any], correction: str) -> list[str]:
    name = f"truncation_correction: {correction}"
    if not args.use_vllm:
        return [f"{name} corrects log-probs that only vLLM returns; set use_vllm: true, or remove it"]
    if not args.vllm_importance_sampling_correction:
        return [f"{name} acts through vllm_importance_sampling_correction, which is false; set it to true"]
    out = []
    if beyond := sorted(set(found) - set(CORRECTABLE)):
        out.append(
            f"{name} cannot undo {', '.join(f'{k}={found[k]}' for k in beyond)}: it changes the logits before the kept "
            f"mass can be measured; correctable are {', '.join(CORRECTABLE)}"
        )
    if correction == "weigh" and args.vllm_importance_sampling_mode in SEQUENCE_MODES and found:
        out.append(
            f"{name} with vllm_importance_sampling_mode={args.vllm_importance_sampling_mode} multiplies the kept "
            "masses of a whole completion, which goes to 0 with its length; use token_truncate or token_mask, or "
            "truncation_correction: restore"
        )
    if args.vllm_mode == "server" and not getattr(args, "vllm_replicas", None) and correction == "restore":
        out.append(f"{name} needs the kept mass, which TRL's own server client does not return; use vllm_replicas")
    return out
