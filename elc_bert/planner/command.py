"""The planning command."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from elc_bert.config.schema import RunConfig
from elc_bert.planner.devices import GIB, find_device
from elc_bert.planner.memory import kernels_of
from elc_bert.planner.plan import Machine, as_json, as_text, make_plan, warnings
from elc_bert.planner.timing import ASSUMED_MFU
from elc_bert.utils.files import atomic_write


def print_plan(
    config: RunConfig,
    *,
    device_name: str,
    devices: int = 1,
    peak_tflops: float | None = None,
    memory_gib: float | None = None,
    bandwidth: float | None = None,
    mfu: float | None = None,
    kernels: Literal["fused", "plain"] | None = None,
    json_file: Path | None = None,
) -> None:
    """Print the plan of a run, with warnings, and write it to a JSON file if one is named.

    Args:
        config: Configuration of the run.
        device_name: Kind of device, see ``find_device``.
        devices: Number of devices.
        peak_tflops: Dense peak of a device. By default that of its data sheet.
        memory_gib: Memory of a device. By default that of its data sheet.
        bandwidth: Bandwidth in GB/s at which a device sends. By default that of its data sheet.
        mfu: Share of the peak that training reaches.
        kernels: ``fused`` or ``plain``. By default what the configuration selects.
        json_file: File for all figures.

    Raises:
        UserError: The device is not known, or the configuration cannot be run on so many devices.
    """
    device = find_device(device_name, devices)
    if peak_tflops:
        device = dataclasses.replace(device, bf16_tflops=peak_tflops, fp32_tflops=peak_tflops)
    if memory_gib:
        device = dataclasses.replace(device, memory=memory_gib * GIB)
    machine = Machine(
        device,
        devices,
        bandwidth or device.bandwidth(devices),
        mfu or ASSUMED_MFU,
        kernels or kernels_of(config),
    )
    plan = make_plan(config, machine)
    print(as_text(plan))
    for line in warnings(plan):
        print(f"warning: {line}")
    if json_file is not None:
        with atomic_write(json_file, "w") as file:
            json.dump(as_json(plan), file, indent=2)
            file.write("\n")
