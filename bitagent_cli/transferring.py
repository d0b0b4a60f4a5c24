"""What `bitagent transfer` strings together: adapt, learn, score, and compare with the control."""

from __future__ import annotations

from bitagent_cli.presets import Preset
from stages import behave, evaluate, transfer
from stages.policies.goals import Ask, Variant
from stages.runtime.config import Run
from stages.worlds import tasks


def transfer_tasks(preset: Preset, run: Run, *, src: str, task: str | None, control: bool, method: str) -> None:
    """Adapt the source's model to the run's domain, then learn and score one task or all of them.

    With `control`, the same again from scratch at the same budget. What is made already is reused.

    Raises:
        BadInput: no source model, no data of the target, or an unknown task.
    """
    names = [tasks.get_task(run.domain, task).name] if task else tasks.task_names(run.domain)
    for scratch in (False, True) if control else (False,):
        transfer.run(preset.transfer, preset.sections, run, src=src, method=method, control=scratch)
        adapted = transfer.method_name(method, src, scratch)
        for name in names:
            behave.run(preset.behave, run, Ask(name), Variant(adapted))
            evaluate.run(preset.evaluate, run, Ask(name), method=adapted)
    if control:
        transfer.compare(run, src=src, method=method)
