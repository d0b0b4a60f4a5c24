"""A model card: what an artifact is, how well it does, what it was made from, and how to use it, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator

from stages.policies.packing import root_of
from stages.report import results
from stages.report.lineage import Node, provenance
from stages.runtime.artifacts import Artifact

ABOUT = {
    "collect": "A dataset of recorded episodes", "backbone": "The offline video-language backbone",
    "embed": "Embeddings of a dataset", "pretrain": "A world model", "behave": "A policy that follows text",
    "evaluate": "Scores of a policy", "transfer": "A comparison after transfer",
}  # fmt: skip


def model_card(artifact: Artifact, use: str, note: str = "") -> str:
    """The card of an artifact.

    Args:
        use: the commands that get and use it.
        note: a paragraph of its own.
    """
    meta, config = artifact.meta, artifact.meta["config"]
    tags = "\n".join(f"- {tag}" for tag in ("bitagent", "reinforcement-learning", "world-model", artifact.domain))
    facts = {"domain": artifact.domain, "scale": meta["resolved"].get("scale", ""), "method": config.get("method", "")}
    facts |= {"seed": meta["seed"], "prompts": "; ".join(config.get("prompts", [])), "id": f"`{artifact.id}`"}
    facts |= {"made": meta["created"], "code": meta["commit"], "on": meta["versions"].get("hardware", "")}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value != "")
    scores = "\n".join(f"| {r.domain} {r.task} | {r.score:.2f} ± {r.stderr:.2f} |" for r in _scores(artifact))
    tree = "\n".join(_ancestry(provenance([artifact], root_of(artifact)), ""))
    parts = [
        f"---\nlicense: mit\nlibrary_name: bitagent\ntags:\n{tags}\n---",
        f"# BiTAgent: {artifact.domain}, {artifact.path.name}",
        f"{ABOUT[meta['stage']]}. {note}".strip(),
        f"| | |\n| --- | --- |\n{rows}",
        *(
            [f"Score: 0 is a random policy, 1 the expert.\n\n| task | score |\n| --- | --- |\n{scores}"]
            if scores
            else []
        ),
        f"## Use\n\n```\n{use}\n```",
        f"## Made from\n\n{tree}",
        f"## Settings\n\n```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(artifact: Artifact) -> list[results.Result]:
    """What was scored of it, or of the policies made from it."""
    found = results.gather(root_of(artifact), artifact.domain)
    return [r for r in found if artifact.id in (r.artifact.id, *r.artifact.meta["inputs"].values())]


def _ancestry(nodes: list[Node], indent: str) -> Iterator[str]:
    """A line an artifact, its inputs indented below it."""
    for node in nodes:
        made = node.artifact.meta if node.artifact and not node.state else {}
        seconds = f", {made['wall_seconds']:.0f} s" if made else ""
        yield f"{indent}- `{node.name}` {node.id}{seconds}"
        yield from _ancestry(node.inputs, indent + "  ")
