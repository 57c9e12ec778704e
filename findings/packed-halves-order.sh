#!/usr/bin/env bash
# transformers 5.24.0: one model has packed gated MLPs in both orders under one name. In its text layers Phi4Multimodal activates the first
# half of the output of `gate_up_proj`, as the name says and as other models do. In its audio layers it activates the second half. Activation,
# shapes and names are the same in both.
# So to replace such a layer by a fused kernel, neither the names nor the model's other layers can be trusted, only numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F
import transformers
from transformers import Phi4MultimodalAudioConfig, Phi4MultimodalConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioMLP, Phi4MultimodalMLP


def activated_half(mlp, x):
    first, second = mlp.gate_up_proj(mlp.layer_norm(x) if hasattr(mlp, "layer_norm") else x).chunk(2, -1)
    candidates = {"first": F.silu(first) * second, "second": first * F.silu(second)}
    return [half for half, hidden in candidates.items() if torch.allclose(mlp.down_proj(hidden), mlp(x), atol=1e-6)]


torch.manual_seed(0)
x = torch.randn(4, 8)
found = {
    "text": activated_half(Phi4MultimodalMLP(Phi4MultimodalConfig(hidden_size=8, intermediate_size=16)).eval(), x),
    "audio": activated_half(Phi4MultimodalAudioMLP(Phi4MultimodalAudioConfig(hidden_size=8, intermediate_size=16)).eval(), x),
}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for layers, halves in found.items():
    print(f"{layers:5} layers: silu of the {' and '.join(halves)} half of gate_up_proj")
assert found == {"text": ["first"], "audio": ["second"]}, "the behaviour has changed"
PYTHON
