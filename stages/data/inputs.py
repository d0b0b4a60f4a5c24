"""What a stage reads: the finished datasets of a run and their embeddings."""

from __future__ import annotations

from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.names import backbone_folder


def find_inputs(run: Run, backbone: str | None = None) -> tuple[list[Artifact], list[Artifact]]:
    """Every finished dataset of the run and, of a backbone, its embeddings of each; all verified.

    Raises BadInput naming the command that makes what is missing.
    """
    data = artifacts.find(run.root, "data/*", "collect", domain=run.domain)
    if not data:
        raise BadInput(f"no data in {run.root / 'data'}; make it with: {run.command('collect')}")
    embeddings = []
    if backbone is not None:
        folder, made_by = (
            run.root / "embeddings" / backbone_folder(backbone),
            run.command("embed", "--backbone", backbone),
        )
        embeddings = [artifacts.load(folder / a.path.name, "embed", domain=run.domain, made_by=made_by) for a in data]
    artifacts.verify(*data, *embeddings)
    return data, embeddings
