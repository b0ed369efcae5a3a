"""slide(draw, ...): a picture with sliders in a notebook, without them elsewhere."""

import inspect


def slide(draw, **choices):
  """draw(), with a slider for each of its arguments over the choices given for it.

  The sliders start at draw's own defaults. Without a notebook's kernel or ipywidgets there are no
  sliders. An exception of the first drawing is raised; ipywidgets alone would only print it.
  """
  if not _in_notebook():
    draw()
    return
  import ipywidgets
  failures = []

  def drawn(**values):
    try:
      draw(**values)
    except Exception as failure:
      failures.append(failure)
      raise

  first = {name: argument.default for name, argument in inspect.signature(draw).parameters.items()}
  ipywidgets.interact(drawn, **{
      name: ipywidgets.SelectionSlider(options=list(values), value=first[name], description=name,
                                       continuous_update=False)
      for name, values in choices.items()})
  if failures:
    raise failures[0]


def _in_notebook():
  try:
    import IPython
    import ipywidgets  # noqa: F401
  except ImportError:
    return False
  return hasattr(IPython.get_ipython(), 'kernel')
