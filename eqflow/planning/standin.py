"""stand-in"""
from typing import NamedTuple, Any
import jax, math
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, AxisType, NamedSharding, PartitionSpec as P
class Parts(NamedTuple):
  step: Any; state: Any; metrics: Any; batch: Any
def mesh_of(config, devices):
  m = dict(data=-1, fsdp=1, tensor=1) | dict(config.get('mesh', {}))
  n = len(devices)
  if m['data']==-1: m['data']=n//(m['fsdp']*m['tensor'])
  return Mesh(np.array(list(devices)).reshape(m['data'],m['fsdp'],m['tensor']),('data','fsdp','tensor'),axis_types=(AxisType.Auto,)*3)
def spec(a, f):
  if f==1 or a.ndim==0 or a.size<2**14: return P()
  dims=[m if m%f==0 else 0 for m in a.shape]
  if not any(dims): return P()
  q=[None]*a.ndim; q[int(np.argmax(dims))]='fsdp'; return P(*q)
def parts(config, mesh):
  from eqflow import build, ema
  from eqflow.training import step as steps, guard
  recipe = build.recipe(config); f=mesh.shape['fsdp']
  def make():
    params = recipe.init(jax.random.key(0))
    return steps.TrainState(seed=jnp.uint32(0), step=jnp.int32(0), examples=jnp.uint32(0), params=params, opt_state=recipe.optimizer.init(params), emas=ema.init(params, build.ema_names(config)), histogram=jax.tree.map(jnp.asarray, recipe.histogram), guard=guard.start(recipe.scale))
  ab = jax.eval_shape(make)
  sh = jax.tree.map(lambda a: NamedSharding(mesh, spec(a,f)), ab)
  S=lambda a,s: jax.ShapeDtypeStruct(a.shape,a.dtype,sharding=s)
  rep=NamedSharding(mesh,P()); bs=NamedSharding(mesh,P(('data','fsdp')))
  met=jax.tree.map(lambda a:S(a,rep), jax.eval_shape(steps.TrainMetrics.empty))
  b=config.train.batch
  batch={'x':jax.ShapeDtypeStruct((b,*config.data.shape),jnp.float32,sharding=bs),'label':jax.ShapeDtypeStruct((b,),jnp.int32,sharding=bs),'index':jax.ShapeDtypeStruct((b,),jnp.uint32,sharding=bs)}
  step = steps.make_step(recipe.loss, recipe.optimizer, recipe.share, mesh, accumulate=config.train.accumulate, measure=recipe.measure, prepare=recipe.prepare, skip=config.train.max_skipped>0, scaled=recipe.scale!=1).__wrapped__
  step = jax.jit(step, donate_argnums=(0,1), out_shardings=(sh, rep, rep))
  return Parts(step, jax.tree.map(S, ab, sh), met, batch)
def undivided(config, mesh):
  return []
