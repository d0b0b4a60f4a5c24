"""Presets: YAML layers → one strict, typed object.

Layers, later ones win: paper.yaml (every default) → the scale's file → the domain's file, with its
own `scales:` block for the scale in use → a user's file, when `--preset` is a path → the block of the
`--method` in use, from `methods:` in paper.yaml → `--set`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from stages.backbones.tuning import MllmConfig
from stages.behave import Config as BehaveConfig
from stages.collect import Config as CollectConfig
from stages.core.settings import ModelConfig
from stages.embed import Config as EmbedConfig
from stages.evaluate import Config as EvaluateConfig
from stages.methods import Constants
from stages.methods.model_free import OfflineRLConfig
from stages.pretrain import Config as PretrainConfig
from stages.pretrain import Sections
from stages.runtime.config import Section
from stages.runtime.errors import BadInput, nearest
from stages.runtime.names import base_method
from stages.transfer import Config as TransferConfig
from stages.visualize import Config as VisualizeConfig

SCALES = ("smoke", "laptop", "gpu", "paper")
MAX_FILE_BYTES = 2**17
MAX_SET_LENGTH = 10_000
OPTIONAL = {"pretrain.dynamics.updates"}  # counts of what may be left out


class Preset(Section):
    """Everything a run is configured by: the domain and one section per stage, plus the model's."""

    domain: str
    collect: CollectConfig
    embed: EmbedConfig
    model: ModelConfig
    mllm: MllmConfig
    pretrain: PretrainConfig
    groundings: Constants
    behave: BehaveConfig
    offline_rl: OfflineRLConfig
    evaluate: EvaluateConfig
    transfer: TransferConfig
    visualize: VisualizeConfig

    @property
    def sections(self) -> Sections:
        """What a model is made from."""
        return Sections(self.pretrain, self.model, self.mllm, self.groundings)


def resolve(name: str, scale: str, settings: Sequence[str] = (), method: str = "bitagent") -> Preset:
    """Resolve `--preset name --scale scale --method method --set ...` into a Preset.

    Args:
        name: a domain (walker) or the path of a YAML file with `base: walker` and overrides.
        scale: smoke, laptop, gpu or paper.
        settings: "section.key=value" strings; a value is read as YAML.
        method: one of `methods()`, or a label made from one, such as transfer-walker.
    Raises:
        BadInput: unknown preset, scale, method or key, a value of the wrong type, or an unreadable file.
    """
    if scale not in SCALES:
        raise BadInput(f"unknown scale {scale!r} ({nearest(scale, [*SCALES, 'auto'])})")
    paper = read_yaml(preset_folder() / "paper.yaml")
    changes = paper.pop("methods")
    if base_method(method) not in changes:
        raise BadInput(f"unknown method {method!r} ({nearest(method, changes)})")
    layers = [("paper.yaml", paper)]
    if scale != "paper":
        layers.append((f"{scale}.yaml", read_yaml(preset_folder() / f"{scale}.yaml")))
    layers += _domain_layers(name, scale)
    layers.append((f"paper.yaml (methods.{base_method(method)})", changes[base_method(method)] or {}))
    layers += [("--set", _setting(text)) for text in settings]

    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, layer in layers:
        _check_keys(layer, source)
        _merge(tree, layer)
        for key, _ in _leaves(layer):
            origin.pop(key, None)  # so that the latest source of a key comes last
            origin[key] = source
    try:
        preset = Preset.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, origin) from None
    _require_usable(preset, layers[0][1], origin)
    return preset


def preset_folder() -> Path:
    """Where the shipped presets are: beside this file once installed, in presets/ in a checkout."""
    installed = Path(__file__).with_name("preset_files")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "presets"


def domains() -> list[str]:
    """The domains that have a shipped preset."""
    return sorted(p.stem for p in preset_folder().glob("*.yaml") if p.stem not in SCALES)


def methods() -> list[str]:
    """The names `--method` takes, in the order of paper.yaml."""
    return list(read_yaml(preset_folder() / "paper.yaml")["methods"])


# ---------------------------------------------------------------------------- layers


def _domain_layers(name: str, scale: str) -> list[tuple[str, dict[str, Any]]]:
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        if name in SCALES:
            raise BadInput(f"{name!r} is a scale, not a preset: use --preset walker --scale {name}")
        if name not in domains():
            raise BadInput(f"unknown preset {name!r} ({nearest(name, domains())}); a path to a YAML file works too")
        return _with_scale(f"{name}.yaml", read_yaml(preset_folder() / f"{name}.yaml"), scale)
    own = read_yaml(Path(name))
    base = own.pop("base", own.get("domain"))
    if not isinstance(base, str) or base not in domains():
        hint = nearest(str(base), domains())
        raise BadInput(f"{name} needs a line 'base: walker' (or another preset) to build on ({hint})")
    if own.setdefault("domain", base) != base:
        raise BadInput(f"{name} has base {base!r} but domain {own['domain']!r}; leave one of them out")
    return _domain_layers(base, scale) + _with_scale(name, own, scale)


def _with_scale(source: str, layer: dict[str, Any], scale: str) -> list[tuple[str, dict[str, Any]]]:
    """Split a file's `scales:` block off: the part for this scale becomes a layer of its own."""
    blocks = layer.pop("scales", None) or {}
    if not isinstance(blocks, dict):
        raise BadInput(f"'scales' in {source} must map a scale to overrides, e.g. scales: {{laptop: {{...}}}}")
    for key in blocks:
        if key not in SCALES:
            raise BadInput(f"unknown scale {key!r} under 'scales' in {source} ({nearest(str(key), SCALES)})")
    part = blocks.get(scale) or {}
    if not isinstance(part, dict):
        raise BadInput(f"'scales.{scale}' in {source} must be a block of overrides")
    return [(source, layer), (f"{source} (scales.{scale})", part)]


def _setting(text: str) -> dict[str, Any]:
    """'model.deter=512' → {'model': {'deter': 512}}."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadInput(f"--set {text[:60]!r} is not of the form section.key=value, e.g. --set model.deter=512")
    if parts == ["domain"]:
        raise BadInput("the domain is chosen by --preset, not by --set")
    if len(text) > MAX_SET_LENGTH:
        raise BadInput(f"--set {key[:60]}=... is longer than {MAX_SET_LENGTH} characters; put it in a preset file")
    tree: Any = parse_yaml(value, f"--set {key.strip()[:60]}")
    for part in reversed(parts):
        tree = {part: tree}
    return dict(tree)


def _merge(tree: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping):
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            _merge(tree[key], value)
        elif value is not None or not isinstance(tree.get(key), dict):  # an empty section overrides nothing
            tree[key] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(tree: Mapping[Any, Any], source: str) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise BadInput(f"{source} has the key {key!r}, which is not a word; quote it or remove it")
        if isinstance(value, Mapping):
            _check_keys(value, source)


# ---------------------------------------------------------------------------- YAML, bounded


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases (no exponential blow-up) and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} appears twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# What PyYAML's constructors raise on tags that do not suit their value, as in `!!int ""` or `!!bool maybe`.
_ODD_SCALARS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML of plain values. Raises BadInput naming `source` for anything else."""
    try:
        return yaml.load(text, _PlainLoader)  # a SafeLoader that also refuses aliases
    except (yaml.YAMLError, *_ODD_SCALARS, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadInput(f"{source} is not plain YAML ({reason[:200]}); correct it and run again") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of at most 128 KiB; an empty file is an empty mapping."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise BadInput(f"cannot read the preset {path} ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise BadInput(f"the preset {path} is not text; give a YAML file") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(f"the preset {path} is larger than 128 KiB; a preset holds only settings")
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadInput(f"the preset {path} must hold 'section: key: value' lines, not a {type(tree).__name__}")
    return tree


# ---------------------------------------------------------------------------- errors in plain words


def known_keys(model: type[BaseModel] = Preset, prefix: str = "") -> list[str]:
    """Every dotted key of the schema: ['domain', 'collect.frames', ...]."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}
_WANTED |= dict.fromkeys(("list", "tuple"), "a list") | dict.fromkeys(("dict", "model"), "a block of keys")


def _explain(error: ValidationError, origin: dict[str, str]) -> BadInput:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    given = next((k for k in reversed(origin) if k == key or k.startswith(f"{key}.")), key)
    source = origin.get(given, "the preset")
    if first["type"] == "extra_forbidden":
        return BadInput(f"unknown key {given!r} in {source} ({_nearest_key(given)})")
    if first["type"] == "missing":
        return BadInput(f"the preset has no value for {key!r}; add it with --set {key}=...")
    kind = first["type"].split("_")[0]
    wanted = f"one of {first['ctx']['expected']}" if kind == "literal" else _WANTED.get(kind)
    value = repr(first["input"])[:60]
    if wanted is None:
        reason = first["msg"].removeprefix("Value error, ")
        return BadInput(f"{key}={value} in {source} is not accepted: {reason[:1].lower()}{reason[1:]}")
    return BadInput(f"{key}={value} in {source} has the wrong type: it must be {wanted}")


def _nearest_key(given: str) -> str:
    """The closest known dotted key, or the keys of the section it names, or the sections."""
    known = known_keys()
    close = nearest(given, known)
    if close.startswith("did you mean"):
        return close
    section = [k for k in known if k.startswith(given.split(".")[0] + ".")]
    return "known: " + ", ".join(section or sorted({k.split(".")[0] for k in known}))


def _require_usable(preset: Preset, defaults: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Numbers are finite; none is negative, and no count but those of OPTIONAL is 0, where its default is not."""
    usual = dict(_leaves(defaults))
    for key, value in _leaves(preset.model_dump()):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        where = origin.get(key, "the preset")
        if not abs(value) < float("inf"):
            raise BadInput(f"{key}={value} in {where} must be a finite number")
        default = usual.get(key, 1)
        least = 1 if isinstance(value, int) and default >= 1 and key not in OPTIONAL else 0
        if value < min(least, default):
            raise BadInput(f"{key}={str(value)[:60]} in {where} is too small: give {least} or more")
