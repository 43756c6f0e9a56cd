"""Outputs and gradients of the reference FT-Transformer, and scikit-learn's scalers.

ch11_ft_transformer.safetensors holds for each case its inputs, parameters, outputs, and
the gradient of mean(output^2); the metadata holds the settings. ch11_scale.json holds a
column before and after StandardScaler and QuantileTransformer.
"""
import json
import warnings

import numpy as np
import torch
from common import HERE, versions, write_json
from rtdl_revisiting_models import FTTransformer
from safetensors.torch import save_file
from sklearn.preprocessing import QuantileTransformer, StandardScaler

CASES = {  # name: (numeric features, cardinalities, changes)
    "both": (3, [2, 5], {}),
    "numbers": (4, [], {"n_blocks": 3, "d_out": 3}),
    "categories": (0, [3, 4, 2], {"n_blocks": 2}),
    "one_head": (2, [3], {"attention_n_heads": 1}),
    "one_block": (5, [2], {"n_blocks": 1, "d_out": 2}),
    "wide_ffn": (2, [], {"ffn_d_hidden_multiplier": 2.3}),
}


def main():
    generator = torch.Generator().manual_seed(0)
    out, settings = {}, {}
    for name, (numeric, cardinalities, changes) in CASES.items():
        kwargs = {
            "d_out": 1, "n_blocks": 2, "d_block": 12, "attention_n_heads": 4,
            "attention_dropout": 0.1, "ffn_d_hidden_multiplier": 4 / 3,
            "ffn_dropout": 0.1, "residual_dropout": 0.1,
        } | changes
        model = FTTransformer(
            n_cont_features=numeric, cat_cardinalities=cardinalities, **kwargs
        ).eval()
        with torch.no_grad():  # away from the zeros and ones of the start
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        x = torch.randn(7, numeric, generator=generator) if numeric else None
        c = None
        if cardinalities:
            draws = [torch.randint(n, (7,), generator=generator) for n in cardinalities]
            c = torch.stack(draws, 1)
        y = model(x, c)
        y.square().mean().backward()
        decayed = {id(p) for p in model.make_parameter_groups()[0]["params"]}
        if x is not None:
            out[f"{name}.x"] = x
        if c is not None:
            out[f"{name}.c"] = c
        out[f"{name}.y"] = y.detach()
        for key, p in model.named_parameters():
            out[f"{name}.theta.{key}"] = p.detach()
            # The key and query of one token and a last block may have none.
            out[f"{name}.grad.{key}"] = torch.zeros_like(p) if p.grad is None else p.grad
        settings[name] = kwargs | {
            "n_cont_features": numeric, "cat_cardinalities": cardinalities,
            "decayed": [k for k, p in model.named_parameters() if id(p) in decayed],
        }
    meta = {"settings": json.dumps(settings), "versions": str(versions())}
    save_file(out, HERE / "ch11_ft_transformer.safetensors", meta)
    path = HERE / "ch11_ft_transformer.safetensors"
    path.chmod(0o644)
    print(path.name, path.stat().st_size)

    defaults = [FTTransformer.get_default_kwargs(n) for n in range(1, 7)]
    rng = np.random.default_rng(0)
    fit = np.concatenate([rng.lognormal(size=60), np.repeat(1.5, 5)])
    new = np.concatenate([rng.lognormal(size=20), [-3.0, 1.5, 50.0, fit.min(), fit.max()]])
    scaled = {"fit": fit.tolist(), "new": new.tolist()}
    for key, scaler in [
        ("standard", StandardScaler()),
        ("quantile", QuantileTransformer(
            n_quantiles=len(fit), output_distribution="normal", subsample=None)),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scaler.fit(fit[:, None])
        scaled[key] = scaler.transform(new[:, None])[:, 0].tolist()
    write_json("ch11_scale.json", {
        "scaled": scaled, "defaults": defaults,
        "versions": versions("scikit-learn", "rtdl_revisiting_models"),
    })


main()
