"""The commands of `bitagent bench`; each prints what its module measured, as JSON or a Markdown table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bitagent_cli.options import Common, with_common

app = typer.Typer(no_args_is_help=True, help="Measure speed on this machine, as JSON; and what random actions earn.")


Domains = Annotated[list[str] | None, typer.Option(help="A domain, repeatable; default: all.")]


def _print(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2))


@app.command("train", epilog="Example: [bold]bitagent bench train --preset walker --scale laptop[/bold]")
@with_common
def bench_training(
    common: Common, updates: Annotated[int, typer.Option(min=1, help="Timed updates of each loop.")] = 20
) -> None:
    """Pretraining and behaviour updates: ms, frames/s, parts, share of the matmul ceiling."""
    from bitagent_cli.session import prepare

    preset, run = prepare(dataclasses.replace(common, quiet=True), "bench")  # stdout holds JSON alone
    from bitagent_cli.bench import train as bench

    width = bench.DIM_EMBEDDING.get(preset.pretrain.backbone, preset.embed.offline.dim)
    _print(bench.run(preset.pretrain, preset.behave, preset.model, run.device, width, updates))


@app.command("collect", epilog="Example: [bold]bitagent bench collect --preset walker --scale laptop[/bold]")
@with_common
def bench_collection(common: Common) -> None:
    """An expert's update, acting, physics and frames on one core: ms, share of the attainable, minutes of training."""
    from bitagent_cli.session import prepare

    preset, run = prepare(dataclasses.replace(common, quiet=True), "bench")
    from bitagent_cli.bench.collect import measure_collection

    _print(measure_collection(preset.collect.expert, run.domain))


@app.command("gpu", epilog="Example: [bold]bitagent bench gpu --states runs/walker-states --minutes 5[/bold]")
@with_common
def bench_gpu(
    common: Common,
    minutes: Annotated[float, typer.Option(min=0.1, help="Of the real run at the end.")] = 5.0,
    task: Annotated[str, typer.Option(help="What its policy is asked for.")] = "walk",
    states: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Datasets without frames; default: collect anew.")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Only make DIR, from the datasets of this run's folder.")
    ] = None,
    updates: Annotated[int, typer.Option(min=1, help="Timed updates of each loop.")] = 20,
) -> None:
    """A GPU's first minutes: updates the same as eager, their speed, and a short real run with its score.

    Writes gpu.json and gpu.md into the run's folder, anew after every part. --scale is gpu where it is not given.
    """
    from bitagent_cli.session import prepare
    from stages.runtime.errors import BadInput

    common = dataclasses.replace(common, scale="gpu" if common.scale == "auto" else common.scale)
    out = common.out or Path("runs") / f"bench-{common.scale}"
    preset, run = prepare(dataclasses.replace(common, out=out), "bench")
    from bitagent_cli.bench import gpu as bench

    if pack is not None:
        if states is None:
            raise BadInput("--pack needs --states DIR: where the datasets without frames go")
        typer.echo(f"{states}: {bench.pack_states(pack, states, run.domain) / 1e6:.0f} MB")
        return
    bench.run_all(preset, run, bench.GpuOrder(minutes, task, updates, states))
    typer.echo((run.root / "gpu.md").read_text(), nl=False)


@app.command("data", epilog="Example: [bold]bitagent bench data --gigabytes 4[/bold]")
def bench_data(
    gigabytes: Annotated[float, typer.Option(min=0.01, help="Size of the synthetic dataset.")] = 2.0,
    batches: Annotated[int, typer.Option(min=1, help="Timed batches a loader.")] = 60,
    folder: Annotated[Path | None, typer.Option(help="Where to write it; default: the system's temporary one.")] = None,
) -> None:
    """The sequence sampler beside loaders that stack episodes: ms a batch, GB/s, peak memory."""
    from bitagent_cli.bench.data import measure_data

    _print(measure_data(gigabytes, batches, folder))


@app.command("render", epilog="Example: [bold]bitagent bench render --size 64[/bold]")
def bench_renderers(
    domain: Domains = None,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Height and width of a frame in pixels.")] = 64,
    frames: Annotated[int, typer.Option(min=10, help="Frames a domain.")] = 500,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw a contact sheet, ray beside gl.")] = None,
) -> None:
    """Frames/s of the ray renderer beside OpenGL and dm_control's default path."""
    from bitagent_cli.bench.render import measure_renderers
    from stages.worlds.tasks import DOMAINS, check_domain

    for name in domain or []:
        check_domain(name)
    _print(measure_renderers(domain or DOMAINS, size, frames, sheet))


@app.command("embed", epilog="Example: [bold]bitagent bench embed --preset walker[/bold]")
@with_common
def bench_backbone(common: Common) -> None:
    """The offline backbone of a run on episodes it never saw: retrieval, prompt ranking, frames/s."""
    from bitagent_cli.session import prepare

    _, run = prepare(dataclasses.replace(common, quiet=True), "bench")
    from bitagent_cli.bench.embed import measure_backbone

    _print(measure_backbone(run.root, run.domain, run.device, run.seed))


@app.command("random-returns", epilog="Example: [bold]bitagent bench random-returns --domain walker[/bold]")
def bench_random_returns(
    domain: Domains = None,
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="Also the tasks that no training names.")] = False,
) -> None:
    """A Markdown table: returns of a random policy beside the minimum that normalises each task's score."""
    from bitagent_cli.bench import random_returns as bench
    from stages.worlds.tasks import TASKS, check_domain

    for name in domain or []:
        check_domain(name)
    chosen = [t for t in TASKS if (t.training or zero_shot) and (not domain or t.domain in domain)]
    bench.print_table(chosen)
