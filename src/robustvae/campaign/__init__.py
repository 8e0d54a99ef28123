"""Campaigns: jobs cut into tasks, run by any executor, with a store that checks itself."""

from typing import TYPE_CHECKING

from robustvae._lazy import attach

if TYPE_CHECKING:  # the same names for type checkers and editors, which read no table
    from robustvae.campaign.calls import Calls
    from robustvae.campaign.driver import run_tasks
    from robustvae.campaign.executors.processes import Processes
    from robustvae.campaign.executors.ray import Ray
    from robustvae.campaign.executors.serial import Serial
    from robustvae.campaign.plan import CampaignPlan, read_campaign
    from robustvae.campaign.pool import Executor, Outcome

_HOMES = {
    "Calls": "calls",
    "CampaignPlan": "plan",
    "Executor": "pool",
    "Outcome": "pool",
    "Processes": "executors.processes",
    "Ray": "executors.ray",
    "read_campaign": "plan",
    "run_tasks": "driver",
    "Serial": "executors.serial",
}

__all__ = [
    "Calls",
    "CampaignPlan",
    "Executor",
    "Outcome",
    "Processes",
    "Ray",
    "read_campaign",
    "run_tasks",
    "Serial",
]

attach(__name__, _HOMES)
