"""An adapter beside a base in bf16, as PEFT computes it under Trainer's `bf16=True`.

A and B are kept in f32, and `torch.autocast` multiplies by them in bf16.
ch15_autocast.safetensors: one layer, what goes into it forward and backward, and what
comes out. train_taught/autocast.json: ten steps of ch16_train10.py under autocast,
unquantized and on the weights of bitsandbytes' CUDA rule; ch16_train10.py has the same
in f32.
"""
import torch
from peft_common import *  # noqa: F403
from safetensors.torch import save_file

BF16 = torch.bfloat16


def layer():
    """s is no power of two, so that it matters where it is rounded."""
    torch.manual_seed(5)
    cfg = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
    model = torch.nn.Sequential(torch.nn.Linear(48, 40).to(BF16))
    model = peft.get_peft_model(model, cfg)
    lora = model.base_model.model[0]
    a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    torch.nn.init.normal_(b, 0.0, 0.3)
    assert a.dtype == b.dtype == torch.float32 and lora.scaling["default"] == 1.5
    x = torch.randn(2, 9, 48).to(BF16).requires_grad_()
    dy = torch.randn(2, 9, 40).to(BF16)
    with torch.autocast("cpu", dtype=BF16):
        y = model(x)
    y.backward(dy)
    base = lora.base_layer
    tensors = dict(x=x, w=base.weight, bias=base.bias, a=a, b=b, dy=dy, y=y,
                   dx=x.grad, da=a.grad, db=b.grad)
    return {k: t.detach().clone() for k, t in tensors.items()}


def run(folder, four_bit, s):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    model = base_model(folder, False)
    model = (cuda_rule(model) if four_bit else model).to(BF16)
    model = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    model.forward = torch.autocast("cpu", dtype=BF16)(model.forward)
    return train(model, rows, s)


save_file(layer(), HERE / "ch15_autocast.safetensors", metadata=versions("peft"))
folder, runs = HERE / "train_taught", []
for four_bit in (False, True):
    for lr in (2e-4, 1e-2):
        s = SETTINGS | {"learning_rate": lr}
        about = {"load_in_4bit": four_bit, "cuda_rule": four_bit, "compute": "bf16"}
        runs.append(about | {"settings": s, "log": run(folder, four_bit, s)})
        print(four_bit, lr, [round(x["loss"], 5) for x in runs[-1]["log"]])
made = versions("transformers", "peft")
text = json.dumps({"versions": made, "runs": runs}, indent=1)
(folder / "autocast.json").write_text(text + "\n")
