"""slide(draw, ...): a picture with sliders in a notebook, and a still one elsewhere."""


def slide(draw, **choices):
  """draw(name=value, ...), each name a slider over its choices, at first the first of them.

  Without a notebook's kernel or ipywidgets it draws the first choices and no slider. An exception
  of the first drawing is raised either way, where ipywidgets alone would print it and go on.
  """
  first = {name: values[0] for name, values in choices.items()}
  if not _in_notebook():
    draw(**first)
    return
  import ipywidgets
  failures = []

  def drawn(**values):
    try:
      draw(**values)
    except Exception as failure:
      failures.append(failure)
      raise

  ipywidgets.interact(drawn, **{
      name: ipywidgets.SelectionSlider(options=list(values), value=values[0], description=name,
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
