"""Fused modules under compilers, exporters, tracers and transforms, and in other libraries, as stock."""

import contextlib
import functools
import inspect
import json
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from as_stock import X, assert_as_stock, assert_same, check, pair, run
from blocks import Packed, Stacked, Twice
from epilogue.nn import fuse, unfuse
from forwards import GLU, MAKES, MLP, Forwards, OfT, Res, sequential


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make", [Res, lambda: Res(F.gelu), MLP, GLU, sequential, Stacked, Forwards.WrittenAfter, Forwards.Squeezed]
)
def test_compiled_in_one_graph(make, training):
    torch._dynamo.reset()
    module, stock = (m.train(training) for m in pair(make))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        assert_same(run(compiled, X, module), run(stock, X), 1e-10)
        if not training:
            child = module.get_submodule("0" if make is sequential else next(n for n, _ in module.named_children()))
            child.register_forward_hook(lambda _m, args, y: 2 * y)
            torch._dynamo.reset()
            assert_same(compiled(X), module(X), 1e-10)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own making
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [MLP, Res, GLU, Forwards.Scaled, OfT])
def test_export_by_the_arguments_name(make, strict):
    module, stock = (m.eval() for m in pair(make))
    program = torch.export.export(module, (X,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}, strict=strict)
    x = torch.randn(9, 8).double()
    assert_same(program.module()(x), stock(x), 1e-11)


LIBRARY = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
    "max_position_embeddings": 16, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "embedding_size": 16, "pad_token_id": 0,
}  # fmt: skip


def one_mlp(out=8):
    """A PreTrainedModel that is one MLP."""
    transformers = pytest.importorskip("transformers")

    class Top(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
            self.post_init()

        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    return Top(transformers.PretrainedConfig())


def of_transformers(name):
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    return cls(cls.config_class(**SMALL))


@LIBRARY
@pytest.mark.parametrize(
    "name", ["Top", "DistilBertForMaskedLM", "BertForMaskedLM", "LlamaForCausalLM", "ElectraForPreTraining"]
)
def test_a_models_config_names_its_class(name, tmp_path):
    module = one_mlp() if name == "Top" else of_transformers(name)
    columns = inspect.signature(module.forward).parameters
    assert fuse(module).fused
    assert inspect.signature(module.forward).parameters == columns  # by which Trainer picks a dataset's
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    assert type(module).__name__ == name


@LIBRARY
def test_electras_head_has_its_shape():
    module, stock = pair(lambda: of_transformers("ElectraForPreTraining"))
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    for m in (module, stock):
        m.eval()
    assert_as_stock(module, stock, lambda m: m(input_ids=ids, labels=ids % 2, return_dict=False))
    assert module(ids).logits.shape == (2, 3)


def test_accelerate_finds_a_class_by_name():
    utils = pytest.importorskip("accelerate.utils.dataclasses")
    module = nn.ModuleDict({"res": Res(), "mlp": MLP()})
    fuse(module)
    for name, cls in (("MLP", MLP), ("Res", Res)):
        found = utils.get_module_class_from_name(module, name)
        assert found is not None
        assert issubclass(found, cls)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_with_a_padding_mask(training, grad, norm_first):
    """In evaluation, without gradients, torch's layers run on nested tensors by a kernel of their own."""

    def encoder():
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    module, stock = (m.train(training) for m in pair(encoder))
    x, mask = torch.randn(3, 5, 8).double(), torch.arange(5) >= torch.tensor([[5], [3], [2]])
    with torch.set_grad_enabled(grad):
        expected = stock(x, src_key_padding_mask=mask)
        assert_same(module(x, src_key_padding_mask=mask), expected, 1e-11)


class Attending(nn.Module):
    """Beside an attention, whose own projection is read rather than called."""

    def __init__(self):
        super().__init__()
        self.attn, self.act = nn.MultiheadAttention(8, 2, batch_first=True), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y, weights = self.attn(x, x, x)
        y = y + self.act(self.attn.out_proj(x))
        return y + self.fc2(self.act(self.fc1(y))), weights


@pytest.mark.parametrize("training", [False, True])
def test_the_neighbours_of_an_attention(training):
    module, stock = (m.train(training) for m in pair(Attending))
    check(module, stock, X[None])
    with torch.no_grad():
        assert_as_stock(module, stock, lambda m: m(X[None]))


@pytest.mark.parametrize("make", MAKES)
def test_global_hooks_see_every_call(make):
    seen = ([], [])
    for module, found in zip((m.eval() for m in pair(make)), seen, strict=True):
        for kind in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
            register = getattr(nn.modules.module, f"register_module_{kind}")
            handle = register(lambda m, *args, found=found, kind=kind: found.append((kind, type(m).__name__)))
            try:
                run(module, X[None])
            finally:
                handle.remove()
    assert ("full_backward_hook", "Linear") in seen[1]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("make", [Res, MLP, GLU, sequential])
def test_flops_are_counted_as_stock(make):
    counts = []
    for module in pair(make):
        with FlopCounterMode(display=False) as counter:
            module(X).sum().backward()
        counts.append((counter.get_total_flops(), counter.get_flop_counts()))
    assert counts[0] == counts[1]
    assert counts[1][0] > 0


@pytest.mark.parametrize("make", [Res, MLP, GLU, Packed, sequential])
def test_function_transforms(make):
    module, stock = (m.eval() for m in pair(make))
    torch.manual_seed(3)
    others = {name: torch.randn_like(p) for name, p in stock.named_parameters()}

    def loss(parameters, x, m):
        return torch.func.functional_call(m, parameters, (x,)).square().sum()

    def found(m):
        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))(others, X, m)
        return torch.func.functional_call(m, others, (X,)), torch.func.grad(loss)(others, X, m), rows

    assert_same(found(module), found(stock), 1e-9)
    check(module, stock)


@pytest.mark.parametrize("make", [Res, MLP, sequential])
def test_an_average_of_models(make):
    results = []
    for module in pair(make):
        average = AveragedModel(module)
        for n in range(3):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(n)
            average.update_parameters(module)
        results.append((run(average), run(module)))
        unfuse(average)
        results[-1] += (run(average),)
    assert_same(*results)


@pytest.mark.parametrize("make", [Res, MLP, lambda: Res(F.gelu)])
def test_a_parametrization_comes_and_goes(make):
    module, stock = pair(make)
    for m in (module, stock):
        parametrize.register_parametrization(m.fc1, "weight", Twice())
    check(module, stock)
    assert list(module.state_dict()) == list(stock.state_dict())
    for m in (module, stock):
        parametrize.remove_parametrizations(m.fc1, "weight")
    assert type(module.fc1) is type(stock.fc1)
    check(module, stock)
    unfuse(module)
    check(module, stock)


class PassingDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PassingFunction(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "mode", [PassingDispatch, PassingFunction, functools.partial(torch.device, "cpu"), torch.inference_mode]
)
@pytest.mark.parametrize("make", [Res, MLP, GLU, Packed, sequential])
def test_called_under_a_mode(make, mode):
    module, stock = (m.eval() for m in pair(make))
    with mode():
        assert_as_stock(module, stock, lambda m: m(X))
        if mode is not torch.inference_mode:
            check(module, stock)


@pytest.mark.parametrize(
    "script", [torch.jit.script, functools.partial(torch.jit.trace, example_inputs=X)], ids=["script", "trace"]
)
@pytest.mark.parametrize("make", [MLP, GLU, sequential, lambda: MLP(nn.Tanh())])
def test_torch_script(make, script):
    module, stock = (m.eval() for m in pair(make))
    scripted = script(module)
    assert_same(scripted(X), stock(X))
    unfuse(module)
    assert_same(scripted(X), stock(X))


def test_threads():
    """Calls at the same time, of a module that is hooked and unhooked meanwhile."""
    module, stock = (m.eval() for m in pair(Res))
    expected, found = stock(X), []

    def calls():
        with contextlib.suppress(Exception):
            for _ in range(20):
                found.append((module(X) - expected).abs().max().item())

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        module.fc1.register_forward_hook(lambda *args: None).remove()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert max(found) < 1e-12
