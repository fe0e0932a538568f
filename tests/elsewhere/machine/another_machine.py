"""Arithmetic as another machine would round it.

Two processors, two numbers of threads or two versions of torch add up the same products in another order,
and the sums differ in their last bits. Training makes two different networks of that. Three things are
changed here, by a factor near 1 that is a function of the number and of the machine alone:

* weights that `torch.nn.init` draws, by one part in a million: from there training goes another way;
* outputs of linear layers and convolutions, by a few units in the last place: the arithmetic of every
  forward pass, also of networks that nobody trains here;
* floats in files that were there before the run, by one part in a million: weights that came from
  elsewhere.

Equal numbers become equal numbers, so what is equal by construction stays equal: two models of one seed,
a run and its repetition, a checkpoint written and read back. Not changed are random draws themselves,
tensors in half precision, products outside these layers, and weights that were read by other functions
than `torch.load` and safetensors' `load_file` and `load_model`.
"""
import functools, inspect, os
from pathlib import Path
import safetensors.torch, torch
from torch import nn
from torch.utils._pytree import tree_leaves

DRAWN = 1e-6     # standard deviation of the relative change of a weight
LAST = 5         # bits of a sum that are other ones: a relative change of 1e-6, too, in float32
PRODUCTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}    # integers of the same size
FACTORS = {torch.int32: (0x2C1B3C6D, 0x2545F491), torch.int64: (0x2C1B3C6D4F6CDD1D, 0x2545F4914F6CDD1D)}

def uniform(bits, machine):
    "For each integer a number between -1 and 1, always the same for the same integer and machine"
    largest = torch.iinfo(bits.dtype).max
    first, second = FACTORS[bits.dtype]
    mixed = (bits ^ (machine*first % largest)).mul_(second)    # overflows: high bits depend on all bits
    return mixed.to(torch.float64 if bits.dtype == torch.int64 else torch.float32).div_(float(largest))

@torch.no_grad()
def change_weight_(w, machine):
    "Every number times 1 + 1e-6 N(0,1), in place; nothing where the precision would not show it"
    if w.dtype not in BITS or w.device.type == 'meta': return
    u = uniform(w.detach().view(BITS[w.dtype]), machine)
    normal = torch.erfinv(u.clamp_(-1 + 1e-6, 1 - 1e-6)).mul_(2**.5)
    w.addcmul_(w, normal, value=DRAWN)

@torch.no_grad()
def round_otherwise_(x, machine):
    """What another order of summation makes of `x`, in place: its last bits are other ones

    A sum that ends in eight zero bits needed no rounding, and stays."""
    bits = x.detach().view(BITS[x.dtype])
    factor = machine*FACTORS[bits.dtype][1] % torch.iinfo(bits.dtype).max | 1
    mixed = bits*factor    # overflows: its high bits depend on all bits
    mixed = mixed.bitwise_right_shift_(8*bits.element_size() - LAST).bitwise_and_(2**LAST - 1)
    rounded = (bits & 0xFF).clamp_(max=1)
    bits.bitwise_xor_(mixed.mul_(rounded))

def change_initial_weights(machine):
    "Every function of `torch.nn.init` that draws, which is one that takes a generator"
    def changed(fill):
        @functools.wraps(fill)
        def filled(tensor, *args, **kwargs):
            out = fill(tensor, *args, **kwargs)
            change_weight_(tensor, machine)
            return out
        return filled
    for name, fill in inspect.getmembers(nn.init, inspect.isfunction):
        draws = not name.startswith('_') and 'generator' in inspect.signature(fill).parameters
        if draws: setattr(nn.init, name, changed(fill))

def change_layers(machine):
    "What linear layers and convolutions hand on; not while a graph is traced, since that is to run anywhere"
    def hook(module, inputs, output):
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or not isinstance(module, PRODUCTS) or output.dtype not in BITS: return
        # Not seen by autograd, and right for it: these layers need what they got for it, not what they gave
        round_otherwise_(output, machine)
    nn.modules.module.register_module_forward_hook(hook)

def is_older(file, time):
    "Was `file` there before `time`? What has no name is no file"
    path = file if isinstance(file, os.PathLike) else getattr(file, 'name', file)    # a Path has a name too
    return isinstance(path, (str, os.PathLike)) and Path(path).stat().st_mtime < time

def change_loaded_weights(machine, since):
    "Floats in files from before `since`; a network that a page wrote itself comes back as it was"
    def changed(load):
        @functools.wraps(load)
        def loaded(f, *args, **kwargs):
            out = load(f, *args, **kwargs)
            for leaf in tree_leaves(out) if is_older(f, since) else ():
                for x in leaf.state_dict().values() if isinstance(leaf, nn.Module) else [leaf]:
                    if isinstance(x, torch.Tensor): change_weight_(x, machine)
            return out
        return loaded
    torch.load = changed(torch.load)
    safetensors.torch.load_file = changed(safetensors.torch.load_file)

def become(machine, since):
    "From now on this process computes as machine number `machine`, in a run that began at `since`"
    change_initial_weights(machine)
    change_layers(machine)
    change_loaded_weights(machine, since)
