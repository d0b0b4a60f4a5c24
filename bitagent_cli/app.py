"""The command line: one command per stage, those that look at what was made, and tools.

Each command resolves the preset, then calls the stage's `run`. Stages are imported inside the
commands, so that `bitagent --help` does not wait for PyTorch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitagent_cli import __version__, benchmarks
from bitagent_cli.failing import Commands
from bitagent_cli.options import CollectOptions, Common, GoalOptions, check_text, check_word, with_common
from stages.runtime.errors import BadInput

if TYPE_CHECKING:
    from bitagent_cli.presets import Preset
    from stages.runtime.artifacts import Artifact
    from stages.runtime.config import Run

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="BiTAgent: train an agent from offline pixels to act on a text prompt.",
    epilog="First: [bold]bitagent demo[/bold], then [bold]bitagent quickstart[/bold].",
    context_settings={"help_option_names": ["-h", "--help"]},
)
FIRST, STAGES, LOOKING, TOOLS = "First", "Stages, in order", "Looking at what was made", "Tools"

Method = Annotated[
    str, typer.Option(help="bitagent, one of its ablations, or a baseline: see `methods` in presets/paper.yaml.")
]
Compile = Annotated[
    str | None,
    typer.Option(metavar="auto|on|off", help="torch.compile: auto means on CUDA only; default: the preset's."),
]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"bitagent {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def set_up(common: Common, stage: str, method: str = "bitagent") -> tuple[Preset, Run]:
    """See session.prepare; imported late because it needs PyTorch."""
    from bitagent_cli import session

    return session.prepare(common, stage, method)


def say(run: Run, *made: Artifact) -> None:
    """See session.tell; imported late, too."""
    from bitagent_cli import session

    session.tell(run, *made)


def check_trainable(method: str) -> None:
    """pretrain makes models of methods by name: refuse the labels that other commands make of them."""
    from stages.runtime.names import base_method

    check_word(method, "--method")
    if base_method(method) != method:
        raise BadInput(f"--method {method} names what transfer or --oracle-reward made: give {base_method(method)}")


def _example(line: str) -> str:
    return f"Example: [bold]{line}[/bold]"


@app.command(rich_help_panel=FIRST, epilog=_example("bitagent demo --prompt 'walk slowly'"))
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="A run's folder with a policy; default: the demo that comes along.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Any text; default: the last that was learned.")] = None,
    gif: Annotated[Path, typer.Option(help="Where the film goes.", dir_okay=False)] = Path("demo.gif"),
    serve: Annotated[bool, typer.Option("--serve", help="A page in the browser instead, that asks for texts.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="With --serve; default: from 7860.")] = None,
    make: Annotated[
        Path | None, typer.Option(metavar="POLICY", help="Make a demo of a finished policy, in --out, instead.")
    ] = None,
    out: Annotated[Path, typer.Option(help="With --make: the folder.", file_okay=False)] = Path("demo"),
) -> None:
    """See a trained policy act on a text, beside what it imagines of it, in a minute and without training."""
    from bitagent_cli import demo as shown
    from stages.report.playground import serve_page

    if make is not None:
        shown.make_demo(make, out)
        return
    scene = shown.open_demo(folder or shown.demo_folder(), "cpu", quiet=False)
    if serve:
        serve_page(scene, port, check_text, browse=True)
        return
    shown.play_demo(scene, None if prompt is None else check_text(prompt), gif)


@app.command(rich_help_panel=FIRST, epilog=_example("bitagent quickstart --preset walker --scale laptop"))
@with_common
def quickstart(common: Common) -> None:
    """Every stage in order, with its plan first and a report that grows: data, model, a policy a task, scores."""
    preset, run = set_up(common, "quickstart")
    from bitagent_cli.quickstart import run_stages

    run_stages(preset, run)


@app.command(rich_help_panel=STAGES, epilog=_example("bitagent collect --preset walker --source expert --task walk"))
@with_common
def collect(
    common: Common,
    options: CollectOptions,
    domain: Annotated[str | None, typer.Option(help="The same as --preset.")] = None,
) -> None:
    """Collect episodes: of a random policy, of an explorer, the replay of an expert in training, and branches.

    A branch is what would have happened under other actions, from a moment of the finished datasets.

    Writes data/<name>/. A collection that was stopped continues with the same command.
    """
    if domain is not None:
        common = dataclasses.replace(common, preset=domain)
    preset, run = set_up(common, "collect")
    from bitagent_cli.session import note_missing_weights
    from stages import collect as stage

    note_missing_weights(preset)

    agent = stage.AgentConfig(preset.model, preset.pretrain.objective, preset.behave.actor_critic)
    say(run, *stage.run(preset.collect, run, stage.Order(**vars(options)), agent))


@app.command(rich_help_panel=STAGES, epilog=_example("bitagent embed --preset walker --backbone offline"))
@with_common
def embed(
    common: Common,
    backbone: Annotated[
        str | None, typer.Option(help="offline, internvideo2, or a Hugging Face id or folder; default: the preset's.")
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Show the clips closest to a text; repeatable.")
    ] = None,
) -> None:
    """Embed every frame window with the video-language backbone.

    Writes embeddings/<backbone>/<dataset>/, and backbone/ for the offline one, which is trained here.
    """
    texts = [check_text(text, "probe") for text in probe or []]
    preset, run = set_up(common, "embed")
    from stages import embed as stage

    say(run, *stage.run(preset.embed, run, backbone=backbone, probe=texts))


@app.command(rich_help_panel=STAGES, epilog=_example("bitagent pretrain --preset walker --seed 1"))
@with_common
def pretrain(common: Common, method: Method = "bitagent", compile: Compile = None) -> None:
    """Train the joint model: world model, fusion, text imagination and the backbone's adapter.

    Writes model/<method>-s<seed>/. Stopped by a signal, it saves; the same command continues.
    """
    check_trainable(method)
    if compile is not None:
        common = common.override("pretrain.compile", compile)
    preset, run = set_up(common, "pretrain", method)
    from stages import pretrain as stage

    say(run, stage.run(preset.sections, run, method=method))


@app.command(
    rich_help_panel=STAGES, epilog=_example('bitagent behave --preset walker --prompt "stand still on both legs"')
)
@with_common
def behave(
    common: Common,
    goal: GoalOptions,
    method: Method = "bitagent",
    oracle_reward: Annotated[
        bool, typer.Option("--oracle-reward", help="Control row: train on the true reward of --task.")
    ] = False,
    data_free: Annotated[
        bool, typer.Option("--data-free", help="Read no dataset: begin every rollout in a state the model dreams up.")
    ] = False,
    compile: Compile = None,
) -> None:
    """Learn a policy for a task or a prompt, from offline pixels and the reward that the text gives.

    Writes policy/<method>-s<seed>/<task or prompt>/. Give one of --task, --prompt, --video, --tasks.
    """
    asked = goal.checked()
    check_word(method, "--method")
    if compile is not None:
        common = common.override("behave.compile", compile)
    preset, run = set_up(common, "behave", method)
    from stages import behave as stage

    variant = stage.Variant(method, oracle_reward, data_free)
    say(run, stage.run(preset.behave, run, stage.Ask(**asked), variant, preset.offline_rl, preset.pretrain.backbone))


@app.command(rich_help_panel=STAGES, epilog=_example("bitagent evaluate --preset walker --task walk --episodes 20"))
@with_common
def evaluate(
    common: Common,
    goal: GoalOptions,
    score_as: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task whose reward scores a --prompt or --video policy.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample actions instead of taking their mean.")] = False,
    episodes: Annotated[int | None, typer.Option(min=1, help="Episodes a task, instead of the preset's.")] = None,
    method: Method = "bitagent",
) -> None:
    """Run a policy in the real environment; normalise its return by random and expert.

    Writes evaluation/<method>-s<seed>/<task or prompt>/.
    """
    asked = goal.checked()
    check_word(score_as, "--score-as")
    check_word(method, "--method")
    if episodes is not None:
        common = common.override("evaluate.episodes", episodes)
    if sample:
        common = common.override("evaluate.sample", "true")
    preset, run = set_up(common, "evaluate", method)
    from stages import evaluate as stage

    say(run, stage.run(preset.evaluate, run, stage.Ask(**asked), score_as=score_as, method=method))


@app.command(
    rich_help_panel=STAGES, epilog=_example("bitagent transfer --src walker --dst stickman --task run --control")
)
@with_common
def transfer(
    common: Common,
    src: Annotated[str, typer.Option(metavar="DOMAIN", help="The domain whose model is carried over.")],
    dst: Annotated[str | None, typer.Option(metavar="DOMAIN", help="The target domain; the same as --preset.")] = None,
    task: Annotated[str | None, typer.Option(help="Task to learn there; default: every task of the target.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates on the target's data.")] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also train from scratch at the same budget, and compare.")
    ] = False,
    method: Method = "bitagent",
) -> None:
    """Carry a trained model to another body, adapt it, learn its tasks and score them.

    Needs the source's model and the target's data and embeddings. Writes model/, policy/ and evaluation/
    of method transfer-<src> in the target's folder, and transfer/ with the gain over the control.
    """
    check_word(task, "--task")
    check_word(method, "--method")
    if dst is not None:
        common = dataclasses.replace(common, preset=dst)
    if updates is not None:
        common = common.override("transfer.updates", updates)
    preset, run = set_up(common, "transfer", method)
    from bitagent_cli.transferring import transfer_tasks

    transfer_tasks(preset, run, src=src, task=task, control=control, method=method)


@app.command(rich_help_panel=LOOKING, epilog=_example("bitagent visualize --preset walker"))
@with_common
def visualize(
    common: Common,
    method: Method = "bitagent",
    reward: Annotated[bool, typer.Option("--reward", help="Judge the learned reward longer, and imagination.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Every domain of a scale instead: Tables 1 and 2, Fig. 3 and 4.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Open a page on this machine that shows what the model makes of any text.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="With --serve; default: the first free one from 7860.")
    ] = None,
) -> None:
    """Show a run: pictures, curves, tables, and one self-contained page with all of them.

    Writes report/. What is not there yet is left out, with the command that makes it. With --paper, the runs are
    those beside --out, which is runs/paper-<scale>.
    """
    if paper:
        from bitagent_cli.session import prepare_paper
        from stages import visualize as stage

        run = prepare_paper(common)
        say(run, stage.run_paper(run))
        return
    check_word(method, "--method")
    preset, run = set_up(common, "visualize", method)
    from stages import visualize as stage

    if serve:
        stage.serve(preset.visualize, run, method=method, port=port, check=check_text)
        return
    say(run, stage.run(preset.visualize, run, method=method, reward=reward))


@app.command(rich_help_panel=TOOLS)
def doctor(
    out: Annotated[Path, typer.Option(help="Where runs would be written.", file_okay=False)] = Path("runs"),
) -> None:
    """Check this machine: versions, devices, renderers, backbone, compiler, disk; says how to get what is missing."""
    from bitagent_cli.doctor import print_findings

    if not print_findings(out):
        raise typer.Exit(2)


@app.command(
    "inspect",
    rich_help_panel=LOOKING,
    epilog=_example("bitagent inspect runs/walker-laptop/model/bitagent-s0 --verify"),
)
def inspect_artifact(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also recompute every checksum.")] = False,
) -> None:
    """Say what an artifact is, what it was made from, and what it holds."""
    from bitagent_cli.inspection import print_artifact

    print_artifact(artifact, verify)


@app.command(rich_help_panel=LOOKING, epilog=_example("bitagent runs runs/walker-laptop"))
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.", exists=True, file_okay=False)] = Path("runs"),
) -> None:
    """List what was made, with its stage, age, score and size."""
    from bitagent_cli.listing import print_runs

    print_runs(folder)


@app.command(
    rich_help_panel=TOOLS, epilog=_example("bitagent push runs/walker-laptop/policy/bitagent-s0/walk hub:me/walker")
)
def push(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    target: Annotated[str, typer.Argument(metavar="hub:USER/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is for you alone.")] = False,
) -> None:
    """Share an artifact, with the backbone it needs and a card, on the Hugging Face hub."""
    from bitagent_cli import sharing

    sharing.push_artifact(artifact, target, private)


@app.command(rich_help_panel=TOOLS, epilog=_example("bitagent pull hub:me/walker --out runs/pulled"))
def pull(
    target: Annotated[str, typer.Argument(metavar="hub:USER/NAME", help="The repository.")],
    out: Annotated[Path, typer.Option(help="The run's folder to be.", file_okay=False)],
) -> None:
    """Fetch what was shared, verified, into a run's folder of its own."""
    from bitagent_cli import sharing

    sharing.pull_artifacts(target, out)


app.add_typer(benchmarks.app, name="bench", rich_help_panel=TOOLS)
