//! How long an optimizer step over 200 tensors of 64 x 576 takes: our side of
//! `cargo xtask bench optim`. Prints a line a step: the rule, and milliseconds.
use downhill::optim::{AdamW, Driver, Param, Sgd};
use downhill_lab::Make;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const METHODS: [(&str, Make); 2] = [
    ("sgd", |p| Box::new(Driver::new(Sgd { momentum: 0.9, ..Sgd::default() }, p))),
    ("adamw", |p| Box::new(Driver::new(AdamW::default(), p))),
];

fn main() {
    let steps = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(60);
    for (name, make) in METHODS {
        let random = || Tensor::randn([64, 576], (Kind::Float, Device::Cpu));
        let params = (0..200).map(|i| {
            let theta = random().set_requires_grad(true);
            (&theta * random()).sum(Kind::Float).backward();
            (format!("theta{i}"), theta)
        });
        let mut optimizer = make(Param::with_decay(params, |_, _| 0.01));
        for _ in 0..steps {
            let began = Instant::now();
            optimizer.step(1e-4);
            println!("{name} {}", 1e3 * began.elapsed().as_secs_f64());
        }
    }
}
