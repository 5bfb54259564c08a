"""Speed, memory and links of known devices."""

from dataclasses import dataclass

from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import available_cores, available_memory
from elc_bert.utils.text import did_you_mean

GIB = 2**30
DEVICES_OF_A_NODE = 8
BETWEEN_NODES = 25.0
"""GB/s that each device can send to other nodes: one 200 Gb/s adapter per device."""


@dataclass(frozen=True)
class Device:
    """Speed, memory and link of one device."""

    name: str
    bf16_tflops: float
    """Peak of dense matrix products in bf16 or fp16, in 10^12 operations per second."""
    fp32_tflops: float
    """The same peak in fp32, without TF32, which PyTorch does not use by default."""
    memory: float
    """Memory in bytes."""
    link: float
    """GB/s that the device can send to the others of its node."""
    is_cpu: bool = False

    def tflops(self, precision: str) -> float:
        """Return the peak of matrix products in a precision, in 10^12 operations per second."""
        return self.fp32_tflops if precision == "fp32" else self.bf16_tflops

    def bandwidth(self, devices: int) -> float:
        """Return the GB/s that a device can send in a ring of ``devices``: those of the slowest link."""
        return self.link if devices <= DEVICES_OF_A_NODE else min(self.link, BETWEEN_NODES)


def _of_data_sheet(name: str, bf16: float, fp32: float, gigabytes: float, link: float) -> Device:
    # A GB counts as 10^9 bytes; the difference from 2^30 is left for the driver and for fragmentation.
    return Device(name, bf16, fp32, gigabytes * 1e9, link)


# Vendors' data sheets: dense figures (half of those "with sparsity"), fp32 with accumulation in fp32 and, on
# AMD, by matrix cores; links in one direction (half of the advertised sum): NVLink, Infinity Fabric, or PCIe
# 4.0 x16 where there is neither. An MI250X is two devices to PyTorch.
DEVICES = {
    device.name: device
    for device in (
        _of_data_sheet("A100-40", 312, 19.5, 40, 300),
        _of_data_sheet("A100-80", 312, 19.5, 80, 300),
        _of_data_sheet("H100", 989.4, 67, 80, 450),
        _of_data_sheet("H200", 989.4, 67, 141, 450),
        _of_data_sheet("L4", 121, 30.3, 24, 32),
        _of_data_sheet("RTX4090", 165.2, 82.6, 24, 32),
        _of_data_sheet("MI250X", 191.5, 47.9, 64, 150),
        _of_data_sheet("MI300X", 1307.4, 163.4, 192, 448),
    )
}


def find_device(name: str, processes: int = 1) -> Device:
    """Find a device by its name, ignoring case; ``cpu`` is measured, and divided among ``processes``.

    Raises:
        UserError: The device is unknown.
    """
    if name.lower() == "cpu":
        return _measured_cpu(processes)
    plain = name.upper().replace(" ", "").replace("_", "-")
    if plain not in DEVICES:
        near = did_you_mean(plain, [*DEVICES, "cpu"])
        raise UserError(f"--device {name}: unknown device{near} (or give --peak and --memory)")
    return DEVICES[plain]


def _measured_cpu(processes: int) -> Device:
    import torch

    from elc_bert.utils.peak_flops import measure_peak_flops

    torch.set_num_threads(available_cores())
    device = torch.device("cpu")
    fp32, bf16 = (measure_peak_flops(device, dtype) / 1e12 for dtype in (torch.float32, torch.bfloat16))
    # Processes on one machine exchange through its memory, at about the speed of a copy by one core.
    return Device(
        "cpu", bf16 / processes, fp32 / processes, available_memory() / processes, link=5.0, is_cpu=True
    )
