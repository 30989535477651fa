"""`entrl plan` and the checks that `entrl train` makes first."""

from entrl.runs.plan.checks import (
    Prepared,
    build_args,
    column_problems,
    launcher_problems,
    opening_problems,
    prepare,
)
from entrl.runs.plan.estimates import count_parameters
from entrl.runs.plan.machines import Machines, read_machines
from entrl.runs.plan.missing import missing_here
from entrl.runs.plan.overview import Plan, plan, recipe_warnings
from entrl.runs.plan.rows import check_rows
from entrl.runs.plan.times import Measured

__all__ = [
    "Machines",
    "Measured",
    "Plan",
    "Prepared",
    "build_args",
    "check_rows",
    "column_problems",
    "count_parameters",
    "launcher_problems",
    "missing_here",
    "opening_problems",
    "plan",
    "prepare",
    "read_machines",
    "recipe_warnings",
]
