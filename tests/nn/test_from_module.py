"""`from_module`: our blocks made of existing MLPs, whose parameters they share."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from epilogue.nn import FusedGatedMLP, FusedMLP, fuse
from inline_blocks import BLOCKS, SIBLINGS


class NanoGPT(nn.Module):
    """nanoGPT's MLP: its dropout is behind the last layer."""

    def __init__(self, dropout=0.0, bias=True, act=None):
        super().__init__()
        self.c_fc = nn.Linear(6, 24, bias)
        self.gelu = act or nn.GELU()
        self.c_proj = nn.Linear(24, 6, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = self.c_fc(x)
        x = self.gelu(x)
        x = self.c_proj(x)
        x = self.dropout(x)
        return x  # noqa: RET504  as it stands there


class Hidden(NanoGPT):
    def forward(self, x):
        return self.c_proj(F.dropout(torch.tanh(self.c_fc(x)), self.dropout.p, self.training))


class Residual(NanoGPT):
    def forward(self, x):
        return x + self.c_proj(self.gelu(self.c_fc(x)))


class Scaled(NanoGPT):
    def forward(self, x):
        return 0.5 * self.c_proj(self.gelu(self.c_fc(x)))


class Clamped(NanoGPT):
    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x.clamp(-1000.0, 1000.0))))


class LayerScale(NanoGPT):
    """At first it computes what a plain block does."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.gamma * self.c_proj(self.gelu(self.c_fc(x)))


class Twice(NanoGPT):
    def forward(self, x):
        x = self.c_proj(self.gelu(self.c_fc(x)))
        return self.c_proj(self.gelu(self.c_fc(x)))


class Llama(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.gate_proj = nn.Linear(6, 16, bias=False)
        self.up_proj = nn.Linear(6, 16, bias=False)
        self.down_proj = nn.Linear(16, 6, bias=False)
        self.act_fn = act or nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def sequential(*behind, act=None, dropout=()):
    return nn.Sequential(nn.Linear(6, 16), act or nn.ReLU(), *dropout, nn.Linear(16, 3), *behind)


def transformers_mlp(name):
    transformers = pytest.importorskip("transformers")
    if name == "GPT2MLP":
        from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

        return GPT2MLP(24, transformers.GPT2Config(n_embd=6))
    if name == "LlamaMLP":
        from transformers.models.llama.modeling_llama import LlamaMLP

        return LlamaMLP(transformers.LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2))
    from transformers.models.t5 import modeling_t5

    return getattr(modeling_t5, name)(transformers.T5Config(d_model=6, d_ff=16, dropout_rate=0.2))


MADE = {
    "nanoGPT": lambda: NanoGPT(),
    "nanoGPT without biases": lambda: NanoGPT(bias=False),
    "a slope": lambda: NanoGPT(act=nn.PReLU()),
    "F.dropout": lambda: Hidden(dropout=0.3),
    "sequential": lambda: sequential(),
    "sequential with dropout": lambda: sequential(nn.Dropout(0.0), dropout=(nn.Dropout(0.3),), act=nn.LeakyReLU(0.2)),
    "Llama": lambda: Llama(),
    "Llama with a slope": lambda: Llama(nn.PReLU()),
    "Llama of transformers": lambda: transformers_mlp("LlamaMLP"),
    "T5": lambda: transformers_mlp("T5DenseActDense"),
    "T5, gated": lambda: transformers_mlp("T5DenseGatedActDense"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_the_same_results_of_the_same_parameters(name, training):
    module = MADE[name]().double().train(training)
    gated = "Llama" in name or "gated" in name
    state = torch.get_rng_state()
    fused = (FusedGatedMLP if gated else FusedMLP).from_module(module)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert {id(parameter) for parameter in fused.parameters()} == {id(parameter) for parameter in module.parameters()}
    assert {*module.modules()} > {*fused.children()}
    assert fused.training is module.training
    results = []
    x = torch.randn(3, 4, fused.up.in_features, dtype=torch.float64, requires_grad=True)
    for block in (module, fused):
        torch.manual_seed(1)
        y = block(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *fused.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_what_is_taken_over():
    module = NanoGPT()
    fused = FusedMLP.from_module(module, recompute=True)
    assert fused.up is module.c_fc
    assert fused.down is module.c_proj
    assert fused.recompute
    assert FusedMLP.from_module(sequential(dropout=(nn.Dropout(0.3),))).dropout == 0.3
    llama = Llama().to("meta", torch.bfloat16)
    gated = FusedGatedMLP.from_module(llama)
    assert (gated.gate, gated.up, gated.down) == (llama.gate_proj, llama.up_proj, llama.down_proj)
    prelu = NanoGPT(act=nn.PReLU(init=0.4)).eval()
    fused = FusedMLP.from_module(prelu)
    assert fused.slope is prelu.gelu.weight
    fused.reset_parameters()
    assert prelu.gelu.weight.item() == pytest.approx(0.4)

    class Own(FusedMLP):
        pass

    assert type(Own.from_module(NanoGPT())) is Own


def test_llamas_state_dict_by_other_keys():
    """As the docstring says."""
    llama, fused = Llama(), FusedGatedMLP(6, 16)
    fused.load_state_dict({key.replace("_proj", ""): value for key, value in llama.state_dict().items()})
    x = torch.randn(2, 6)
    torch.testing.assert_close(fused(x), llama(x))


def test_blocks_written_in_other_ways():
    """Each is refused, or computes what it did."""
    made = set()
    for name, block in {**BLOCKS, **{name: SIBLINGS[name][0] for name in SIBLINGS}}.items():
        module = getattr(block, "make", block)().double().eval()
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        for cls in (FusedMLP, FusedGatedMLP):
            with contextlib.suppress(TypeError):
                torch.testing.assert_close(cls.from_module(module)(x), module(x), rtol=1e-10, atol=1e-10)
                made.add(name)
    assert len(made) > 20
    assert not made & SIBLINGS.keys()


def hooked():
    module = NanoGPT()
    module.register_forward_hook(lambda *_: None)
    return module


def fused_before():
    module = NanoGPT()
    fuse(module)
    return module


def mixed():
    module = NanoGPT()
    module.c_proj.double()
    return module


def with_dropout_in_evaluation():
    module = NanoGPT(dropout=0.1)
    module.dropout.eval()
    return module


MORE = "does more, its results differ by"
NONE = r"its forward is not down\(dropout\(act\(up\(x\)\)\)\)"
REFUSED = [
    (
        FusedMLP,
        lambda: NanoGPT(dropout=0.001),
        "drops more than hidden units: give a dropout behind its last layer p=0",
    ),
    (FusedMLP, lambda: sequential(nn.Dropout(0.1)), "drops more than hidden units"),
    (FusedMLP, with_dropout_in_evaluation, r"its dropout is in another mode than itself: call train\(\) or eval\(\)"),
    (FusedMLP, Residual, MORE),
    (FusedMLP, Scaled, MORE),
    (FusedMLP, Clamped, MORE),
    (FusedMLP, Twice, NONE),
    (FusedMLP, lambda: sequential(nn.LayerNorm(3)), "it does more, with 3.weight"),
    (FusedMLP, LayerScale, "it does more, with gamma; leave it to `fuse`"),
    (FusedMLP, lambda: sequential(nn.LayerNorm(3, elementwise_affine=False)), MORE),
    (FusedMLP, lambda: sequential(act=nn.Softmax(-1)), "between its layers stands Softmax|" + NONE),
    (FusedMLP, lambda: sequential(nn.ReLU(), nn.Linear(3, 3), act=nn.Softmax(-1)), NONE),
    (FusedMLP, lambda: sequential(nn.ReLU()), NONE),
    (FusedMLP, lambda: transformers_mlp("GPT2MLP"), r"a Conv1D's weight is \[in, out\].* leave it to `fuse`"),
    (FusedMLP, Llama, "it is gated: FusedGatedMLP"),
    (FusedGatedMLP, NanoGPT, "it is not gated: FusedMLP"),
    (FusedGatedMLP, Packed, "its gate and up are one layer"),
    (FusedMLP, lambda: FusedMLP(5, 6), "it is fused already"),
    (FusedMLP, hooked, "its hooks would be lost"),
    (FusedMLP, fused_before, "`unfuse` it first"),
    (FusedMLP, mixed, "different dtypes"),
    (FusedMLP, lambda: nn.Linear(6, 6), NONE),
    (FusedMLP, lambda: NanoGPT.forward, "expected a torch.nn.Module, got function"),
]


@pytest.mark.parametrize(("cls", "make", "reason"), REFUSED)
def test_what_is_refused(cls, make, reason):
    with pytest.raises(TypeError, match=rf"{cls.__name__}\.from_module: .*({reason})"):
        cls.from_module(make())


def test_in_inference_mode():
    module = NanoGPT()
    with torch.inference_mode():
        made = FusedMLP.from_module(module)
    x = torch.randn(2, 6)
    torch.testing.assert_close(made(x), module(x))
