"""The one loader of models: a folder, a shipped asset, a packaged model, a hub id, or an adapter on one of these.

An adapter is never dropped. It is

    "apart"  put on its base, as it is: for evaluations
    "fold"   folded into its base (`entrl.models.fold`): what trains all weights, and what a further adapter sits on
    a peft.LoraConfig of the adapter's own shape: put on its base and trained on

Needs:   peft, where there is an adapter
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from entrl.models.packaged import NotFetched
from entrl.models.quantization import Quantization, quantization_problems
from entrl.models.shipped import bare_names, model_path, naming_model

DTYPES = ("float32", "bfloat16", "float16")  # that weights are loaded or stored in
NAMED = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "rank_pattern", "alpha_pattern", "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter folder or hub id, read no further than its configuration."""

    where: str
    settings: dict[str, Any]  # of adapter_config.json

    @cached_property
    def base(self) -> str:
        """Where its base is; a recorded path to a model with a bare name also works from another installation."""
        named = self.settings.get("base_model_name_or_path")
        if not named:
            raise ValueError(f"adapter {self.where} names no base model; {self._merge_with_base}")
        ours = Path(named).name in bare_names() and not Path(named).is_dir()
        try:
            return model_path(Path(named).name if ours else named)
        except NotFetched:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(self.without_base(error)) from None

    def without_base(self, error: OSError) -> str:
        """What to say where the base cannot be had."""
        named = self.settings.get("base_model_name_or_path")
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if why.startswith("adapter "):  # said already
            return why
        return f"adapter {self.where} sits on {named!r}, which is not here: {why}; {self._merge_with_base}"

    @property
    def _merge_with_base(self) -> str:
        return f"run `entrl merge {self.where} --base MODEL --out FOLDER` to take its base from elsewhere"

    @property
    def merge(self) -> str:
        """The way out where an adapter cannot be used."""
        return f"fold it in first: `entrl merge {self.where} --out FOLDER`, and set model.path to that folder"


def find_adapter(path: str, *, revision: str | None = None, base: str | None = None) -> Adapter | None:
    """The adapter that `path` names, None for a whole model. A folder with both is what its config.json says.

    base: taken in place of the base model that the adapter names
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    where = model_path(path)
    if (Path(where) / "config.json").is_file():
        return None
    file = find_adapter_config_file(where, revision=revision)
    if file is None:
        return None
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    moved = {} if base is None else {"base_model_name_or_path": base, "revision": None}
    return Adapter(where=where, settings=settings | moved)


def base_of(path: str, *, revision: str | None = None) -> tuple[str, str | None]:
    """(where, revision) of the whole model that `path` is or sits on: for its configuration, and for engines."""
    found = find_adapter(path, revision=revision)
    if found is None:
        return model_path(path), revision
    return base_of(found.base, revision=found.settings.get("revision"))


def load_policy(
    path: str, *, dtype: str = "auto", device: str | None = None, quantization: Quantization | None = None
) -> tuple[Any, Any]:
    """Model and tokenizer as they are evaluated: an adapter on its base, which may be a shipped asset.

    quantization: of the base, where the adapter was trained on one in 4 bit; None takes it in `dtype`
    """
    import torch

    model = load_weights(path, adapter="apart", dtype=dtype, **_quantized(quantization))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), load_tokenizer(path)


def load_model(spec: Any, lora: Any = None) -> tuple[Any, Any]:
    """(model, tokenizer) as they are trained. spec: a recipe's `model` group; lora: its peft.LoraConfig, or None.

    A PeftModel comes back where model.path is an adapter that `lora` trains on; see `new_adapter`.
    """
    options = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation is not None else {}
    options |= _quantized(spec.quantization)
    common = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    how = "fold" if lora is None else lora
    model = load_weights(spec.path, adapter=how, dtype=spec.dtype, **options, **common)
    return model, tokenizer_of(spec)


def _quantized(quantization: Quantization | None) -> dict[str, Any]:
    return {} if quantization is None else {"quantization_config": quantization.build()}


def tokenizer_of(spec: Any) -> Any:
    """The tokenizer of a recipe's `model` group; OSError or ValueError where it cannot be had."""
    if spec.tokenizer is not None:
        return load_tokenizer(spec.tokenizer, padding_side="left")
    common = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    return load_tokenizer(spec.path, padding_side="left", **common)


def new_adapter(model: Any, lora: Any) -> Any:
    """The configuration of the adapter a trainer still has to draw: none where the model brought its own."""
    return None if hasattr(model, "peft_config") else lora


def load_weights(
    path: str, *, adapter: Any, dtype: str, revision: str | None = None, base: str | None = None, **options: Any
) -> Any:
    """See the module docstring for `adapter`; `dtype` is of the base's weights, an adapter trains in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    with naming_model(path):
        found = find_adapter(path, revision=revision, base=base)
        if found is None:
            kind = dtype if dtype == "auto" else getattr(torch, dtype)
            return AutoModelForCausalLM.from_pretrained(model_path(path), dtype=kind, revision=revision, **options)
    under = {"dtype": dtype, "revision": found.settings.get("revision"), **options}
    try:
        below = load_weights(found.base, adapter="fold", **under)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"adapter {path} sits on a base that is not here: {error}") from error
    return _put_on(below, found, adapter, revision)


def _put_on(base: Any, found: Adapter, adapter: Any, revision: str | None) -> Any:
    from peft import PeftConfig, PeftModel

    from entrl.models.fold import fold  # brings torch

    config: Any = PeftConfig.from_pretrained(found.where, revision=revision)
    trains = not isinstance(adapter, str)
    if trains:
        if problem := shape_problem(found, config, adapter, base.config):
            raise ValueError(problem)
        config.lora_dropout = adapter.lora_dropout
    try:
        model = PeftModel.from_pretrained(base, found.where, config=config, is_trainable=trains, revision=revision)
    except RuntimeError as error:  # torch: sizes that do not match, such as of embeddings that have grown
        why = (str(error).splitlines() or [""])[-1].strip()
        raise ValueError(f"adapter {found.where} does not fit its base {found.base}: {why}") from error
    return fold(model, found.where) if adapter == "fold" else model


def load_tokenizer(path: str, *, revision: str | None = None, base: str | None = None, **options: Any) -> Any:
    """A folder's own tokenizer where it has one, be it a model, an adapter or nothing else; else that of the base."""
    from transformers import AutoTokenizer

    if path not in bare_names() and Path(path).is_dir() and _has_tokenizer(path, None):
        with _readable(path):
            return AutoTokenizer.from_pretrained(path, **options)
    with naming_model(path), _readable(path):
        found = find_adapter(path, revision=revision, base=base)
        if found is None or _has_tokenizer(found.where, revision):
            return AutoTokenizer.from_pretrained(model_path(path), revision=revision, **options)
    return load_tokenizer(found.base, revision=found.settings.get("revision"), **options)


def _has_tokenizer(where: str, revision: str | None) -> bool:
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    names = ("tokenizer.json", "tokenizer_config.json")
    return any(cached_file(where, name, revision=revision, **quiet) is not None for name in names)


def load_config(spec: Any) -> Any:
    """The architecture of a recipe's `model` group, of the base where it is an adapter."""
    from transformers import AutoConfig

    where, revision = base_of(spec.path, revision=spec.revision)
    with _readable(spec.path):
        return AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=spec.trust_remote_code)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """ValueError for what damaged files of a model make transformers and tokenizers raise."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        # tokenizers raises Exception itself, and a file with keys or values that it cannot have the others
        damaged = (StrictDataclassError, LookupError, TypeError, AttributeError, RecursionError)
        if type(error) is not Exception and not isinstance(error, damaged):
            raise
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.path {path}: its configuration or tokenizer cannot be read ({why}); mend it"
        ) from error


def on_meta(config: Any) -> Any:
    """The model of a configuration, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def generation_defaults(spec: Any) -> Any:
    """The sampler settings that a recipe's `model` brings (generation_config.json), None where it has no such file."""
    from transformers import GenerationConfig

    try:
        where, revision = base_of(spec.path, revision=spec.revision)
        return GenerationConfig.from_pretrained(where, revision=revision or "main")
    except OSError:  # none, or said where the model is loaded
        return None


# --- what cannot be had -------------------------------------------------------------------------------------------


def refuse_adapter(path: str, why: str, *, revision: str | None = None) -> None:
    """ValueError naming `entrl merge` where `path` is an adapter."""
    if found := find_adapter(path, revision=revision):
        raise ValueError(f"model.path {path} is an adapter, and {why}; {found.merge}")


def model_problems(spec: Any, lora: Any, args: Any) -> tuple[list[str], list[str]]:
    """(problems, what is done with an adapter) of a recipe's `model` and `lora`, read from configurations alone.

    args: the trainer's config, or None. A model that cannot be looked at from here has no problems yet.
    """
    problems, notes = _adapter_problems(spec, lora, args)
    return quantization_problems(spec.quantization, lora, args) + problems, notes


def _adapter_problems(spec: Any, lora: Any, args: Any) -> tuple[list[str], list[str]]:
    try:
        found = find_adapter(spec.path, revision=spec.revision)
        if found is None and lora is None:
            return [], []
    except NotFetched as error:
        return [str(error)], []
    except OSError:  # said where it is loaded
        return [], []
    try:
        config = load_config(spec)
    except OSError as error:
        return ([found.without_base(error)], []) if found is not None else ([], [])
    out = _tied_problems(lora, args, config)
    if found is None:
        return out, []
    from peft import PeftConfig

    own: Any = PeftConfig.from_pretrained(found.where, revision=spec.revision)
    if lora is not None:
        if problem := shape_problem(found, own, lora, config):
            out.append(problem)
        if getattr(args, "use_vllm", False) and find_adapter(found.base):
            out.append(
                f"model.path {found.where} is an adapter on an adapter, and an engine (use_vllm) would read the lowest "
                f"base alone; {found.merge}"
            )
        if spec.quantization is not None and find_adapter(found.base):
            out.append(
                f"model.path {found.where} is an adapter on an adapter, and the lower one cannot be folded into 4-bit "
                f"weights (model.quantization); {found.merge}"
            )
        return out, [f"model.path is an adapter on {found.base}: it is trained on"]
    return out + _fold_problems(found, own, args), [
        f"model.path is an adapter on {found.base}: it is folded in, and all weights are trained"
    ]


def _fold_problems(found: Adapter, own: Any, args: Any) -> list[str]:
    what = f"model.path {found.where} is an adapter, to be folded in (no `lora`)"
    out = []
    if own.is_prompt_learning:
        out.append(f"{what}, but of kind {own.peft_type.value}, which cannot be folded in; take a LoRA adapter")
    if getattr(args, "beta", 0.0):
        out.append(f"{what}, and with beta={args.beta:g} TRL reads the reference from the base alone; {found.merge}")
    if getattr(args, "use_vllm", False):
        out.append(f"{what}, and an engine (use_vllm) would read the base alone; {found.merge}")
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    if is_deepspeed_zero3_enabled() or is_fsdp_enabled():
        out.append(f"{what}, and under ZeRO-3 or FSDP not every process has whole weights; {found.merge}")
    return out


def _tied_problems(lora: Any, args: Any, config: Any) -> list[str]:
    """Adapters on embeddings that are also the output layer."""
    if lora is None or not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return []
    out = []
    if getattr(lora, "trainable_token_indices", None):
        out.append(
            "lora.trainable_token_indices: this model's embeddings are tied to its output layer, which peft then wraps "
            "as well, and TRL reads that layer's weights directly; train whole embeddings instead (lora.modules_to_save"
            ": [embed_tokens])"
        )
    targets, saved = (getattr(lora, name, None) or [] for name in ("target_modules", "modules_to_save"))
    named = [*([] if isinstance(targets, str) else targets), *saved]
    if getattr(args, "use_vllm", False) and any(n.rpartition(".")[2] in ("embed_tokens", "lm_head") for n in named):
        out.append(
            "lora on embed_tokens or lm_head of a model whose two are tied: the engine (use_vllm) keeps them tied and "
            "would sample from another policy; leave them out of lora, or set use_vllm: false"
        )
    return out


def shape_problem(found: Adapter, own: Any, lora: Any, config: Any) -> str | None:
    """Why `lora` cannot train on with this adapter, None where it is of the same shape."""
    if getattr(own, "r", None) is None or type(own) is not type(lora):
        what = f"of kind {own.peft_type.value}"
    else:
        differ = [n for n in NAMED if _plain(getattr(own, n)) != _plain(getattr(lora, n))]
        what = ", ".join(f"{n} {getattr(own, n)!r}, not {getattr(lora, n)!r}" for n in differ)
        if not what and trained_shapes(config, own) != trained_shapes(config, lora):
            what = f"on other layers (target_modules {sorted(own.target_modules)})"
    if not what:
        return None
    return (
        f"model.path {found.where} is an adapter {what}. `lora` trains on with an adapter of its own shape: make them "
        f"equal; or leave `lora` out, to fold it in and train all weights; or, for a new adapter on top, {found.merge}"
    )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | set | tuple) else value or None


def trained_shapes(config: Any, lora: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what an adapter trains, built without memory on the meta device."""
    import copy

    import torch
    from peft import get_peft_model

    lora = copy.deepcopy(lora)  # peft writes the layers it found into it
    lora.inference_mode = False
    with torch.device("meta"):
        model: Any = get_peft_model(on_meta(config), lora)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
