"""Rows of images with their names, as one picture."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from eqflow.evaluation import images

MARGIN, DPI = 190, 100   # pixels left of the images for the names


def pictured(rows: Mapping[str, np.ndarray], *, scale: int = 1) -> np.ndarray:
  """uint8 [h, w, 1]: for each name a row of images [n, h, w, 1] in [-1, 1]; pixels are `scale` wide."""
  columns = len(next(iter(rows.values())))
  sheet = images.grid(np.concatenate(list(rows.values())), columns)[..., 0]
  height, width = scale * np.array(sheet.shape)
  figure = Figure(figsize=((width + MARGIN) / DPI, height / DPI), dpi=DPI)
  axis = figure.add_axes((MARGIN / (width + MARGIN), 0, width / (width + MARGIN), 1))
  axis.imshow(sheet, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
  axis.set_xticks([])
  axis.set_yticks(len(sheet) / len(rows) * (np.arange(len(rows)) + 0.5), rows, fontsize=9)
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :1]
