"""LAMB, parameter groups and learning-rate schedules."""

from elc_bert.optim.groups import parameter_groups
from elc_bert.optim.lamb import Lamb
from elc_bert.optim.schedules import schedule_factor

__all__ = ["Lamb", "parameter_groups", "schedule_factor"]
