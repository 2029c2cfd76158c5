"""``python stage_runs.py OPTIONS``: a run of a stage from its rows to its checkpoint, OPTIONS being a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ftcore.api.plan import Run
from ftcore.config.planner import make_plan
from ftcore.runner.run import destroy_process_group, load_model, new_trainer, use_template


def main() -> None:
    plan = make_plan(None, values=json.loads(Path(sys.argv[1]).read_text()))
    run = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
    run.data = plan.stage.component.datasets(run)
    use_template(run)
    load_model(run)
    trainer = new_trainer(run)
    trainer.train()
    trainer.evaluate()
    destroy_process_group()


if __name__ == "__main__":
    main()
