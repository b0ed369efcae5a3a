"""Limits of one device, from the published numbers of its maker, in bytes, FLOP and seconds.

TPUs      docs.cloud.google.com/tpu/docs/v5e, v5p, v6e: peak compute and memory of a chip, and the
          bandwidth of its links in both directions together, half of it outgoing.
H100      NVIDIA's data sheet of the SXM5 part: 989.4 TFLOP/s dense in bfloat16, 80 GB at 3.35 TB/s,
          NVLink 900 GB/s in both directions. H200: the same chip with 141 GB at 4.8 TB/s.
network   DGX H100 and H200: one 400 Gb/s adapter for each GPU.
"""

from typing import NamedTuple

from eqflow.arrays import Number


class Chip(NamedTuple):
  """A device's limits; None where none is published."""
  memory: Number | None      # bytes available to a program
  flops: Number | None       # bfloat16, dense
  bandwidth: Number | None   # of its memory
  inside: Number | None      # outgoing, to directly linked devices
  outside: Number | None     # outgoing, to other hosts; None: all devices are linked


GB, GIB = 1e9, 2**30
CHIPS = {
    'cpu':  Chip(None, None, None, None, None),
    'v5e':  Chip(16 * GIB, 197e12, 819 * GB, 400 * GB / 2, None),
    'v5p':  Chip(95 * GIB, 459e12, 2765 * GB, 1200 * GB / 2, None),
    'v6e':  Chip(32 * GIB, 918e12, 1638 * GB, 800 * GB / 2, None),
    'h100': Chip(80 * GB, 989.4e12, 3350 * GB, 900 * GB / 2, 400 * GB / 8),
    'h200': Chip(141 * GB, 989.4e12, 4800 * GB, 900 * GB / 2, 400 * GB / 8),
}

# What the CUDA compiler must know of a GPU that is not present: the limits of compute capability 9.0
# (CUDA programming guide) and the table above.
GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
device_description_str: "NVIDIA {name}"
"""


def gpu_target(name: str) -> str:
  """A description of a GPU of the table, from which the CUDA compiler works without that GPU."""
  chip = CHIPS[name]
  return GPU_TARGET.format(name=name.upper(), memory=chip.memory, bandwidth=chip.bandwidth)
