"""YAML 1.2, read strictly: `1e-4` is a number, `no` the word "no", and a key that is written twice stops the file."""

import re
from typing import Any

import yaml

MOST_VALUES = 100_000  # of one file, what its aliases stand for included; our recipes have about a hundred


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and no duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen and key != "<<":
                raise ValueError(
                    f"{self.name}: line {key_node.start_mark.line + 1}: key {key!r} is written twice; keep one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        if text.lstrip("+-") in (".inf", ".nan"):
            return float(text.replace(".", ""))
        if re.fullmatch(r"[-+]?0[xo][0-9a-f]+", text):
            return int(text, 0)
        return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: quotes exactly the strings `Loader` would take for something else."""


_INT = r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {}
    _class.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"])
    _class.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    _class.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT})$"), list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), list("-+0123456789."))
for _tag in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", Loader.construct_number)


def parse_yaml(text: str, *, name: str = "recipe") -> Any:
    """YAML text -> plain objects; errors say where."""
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:  # a control character
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := count_values(node, {}, name)) > MOST_VALUES:
            raise ValueError(
                f"{name} stands for {count:,} values by its aliases (*name), at most {MOST_VALUES:,} are read"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply; a recipe has a handful of levels") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}; {_cure(error)}") from error
    finally:
        loader.dispose()


def _cure(error: yaml.YAMLError) -> str:
    """What to do about text that is no YAML."""
    why = str(error)
    if "single document" in why:
        return "write one recipe a file, without ---"
    if "found character '\\t'" in why:
        return "indent by spaces, not tabs"
    if "constructor" in why:
        return "write plain values, without tags (!...)"
    return "mend the line before, or quote what holds a colon, bracket or quote"


def count_values(node: yaml.Node, known: dict[int, int], name: str) -> int:
    """Values a YAML node stands for once every alias is written out; ValueError for one that holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError(f"{name}: line {node.start_mark.line + 1} holds an alias of itself")
        return known[id(node)]
    known[id(node)] = 0  # being counted
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    known[id(node)] = 1 + sum(count_values(part, known, name) for part in inner)
    return known[id(node)]


def dump_yaml(content: Any) -> str:
    """What `parse_yaml` reads back, keys in their order."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
