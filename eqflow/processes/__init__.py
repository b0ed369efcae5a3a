"""Processes, t -> Mix(alpha, sigma): how data turns into noise, z = alpha x + sigma eps.

t = 0 is data and t = 1 is noise (EDM's t is its sigma, from 0 up). A process is one function; its
velocity and its log-SNR follow from it (`rate`, `logsnr`). `tables` has DDPM's discrete time, `sde`
drift and diffusion.
"""

from eqflow.processes.base import Process, logsnr, logsnr_rate, noise_to_signal, rate, time_of_logsnr
from eqflow.processes.continuous import (
    cosine, edm, linear, logsnr_shifted, scaled, shifted, sub_vp, variance_preserving)
from eqflow.processes.tables import discrete, table, table_angles
from eqflow.processes.transports import Transport, transport

__all__ = [
    'Process', 'Transport', 'cosine', 'discrete', 'edm', 'linear', 'logsnr', 'logsnr_rate',
    'logsnr_shifted', 'noise_to_signal', 'rate', 'scaled', 'shifted', 'sub_vp', 'table',
    'table_angles', 'time_of_logsnr', 'transport', 'variance_preserving']
