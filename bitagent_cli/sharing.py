"""`bitagent push` and `bitagent pull`: an artifact with what it needs, to a model hub and back, by huggingface_hub.

A repository of the hub holds a run's folder: artifacts where a run has them, and the card as README.md.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.policies.packing import pack_up
from stages.report.card import model_card
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput

SCHEME = "hub:"
FILES = ["README.md", *(f"**/*.{kind}" for kind in ("json", "safetensors", "gif", "md", "csv", "tex"))]


def repository(target: str) -> str:
    """'hub:user/name' → 'user/name'. Raises BadInput for anything else."""
    name = target.removeprefix(SCHEME)
    if not target.startswith(SCHEME) or name.count("/") != 1 or not all(name.split("/")):
        raise BadInput(f"{target!r} is no repository: give {SCHEME}user/name")
    return name


def push_artifact(path: Path, target: str, private: bool) -> None:
    """Send an artifact, its backbone and a card. Raises BadInput when the hub refuses or cannot be reached."""
    name, found = repository(target), artifacts.load(path)
    with tempfile.TemporaryDirectory() as folder:
        sent = pack_up(found, Path(folder))
        use = f"bitagent pull {target} --out runs/{name.split('/')[1]}"
        (Path(folder) / "README.md").write_text(model_card(found, use))
        with hub(target) as api:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{found.meta['stage']} {found.id}")
    print(f"{', '.join(str(a.meta['name']) for a in sent)}: pushed to {target}")


def pull_artifacts(target: str, out: Path) -> list[Artifact]:
    """Fetch a repository to `out`, whole and verified, or not at all.

    Raises BadInput when there is something already, the hub cannot be reached, or what came is no artifact.
    """
    name = repository(target)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: give another --out")
    with storage.draft(out) as draft:
        with hub(target) as api:
            api.snapshot_download(name, local_dir=draft, allow_patterns=FILES)
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # the client's notes
        found = [artifacts.load(file.parent) for file in sorted(draft.rglob("artifact.json"))]
        if not found:
            raise BadInput(f"{target} holds no artifact of BiTAgent")
        artifacts.verify(*found)
        storage.replace_folder(draft, out)
    places = [out / a.path.relative_to(draft) for a in found]
    for place in places:
        print(f"pulled {place}")
    return [artifacts.load(place) for place in places]


@contextmanager
def hub(target: str) -> Iterator[Any]:
    """The hub's client. Raises BadInput, on entry or for what goes wrong inside, saying what to do."""
    try:
        from huggingface_hub import HfApi, errors
    except ImportError:
        raise BadInput('the hub needs its client: pip install "bitagent[hub]"') from None
    try:
        yield HfApi()
    except errors.RepositoryNotFoundError:
        way = "check the name, or log in: hf auth login"
        raise BadInput(f"{target} does not exist, or is not yours to see: {way}") from None
    except errors.HFValidationError as error:
        raise BadInput(f"{target} is no repository's name: {str(error).splitlines()[0]}") from None
    except (errors.HTTPError, ConnectionError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        refusal = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if not isinstance(refusal, errors.HfHubHTTPError):
            raise BadInput("the hub cannot be reached: check the network, HF_ENDPOINT and HF_HUB_OFFLINE") from None
        code = refusal.response.status_code
        reason = "log in: hf auth login" if code in (401, 403) else "try again later"
        raise BadInput(f"the hub refused {target} (HTTP {code}): {reason}") from None
