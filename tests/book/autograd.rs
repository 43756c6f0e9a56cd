//! Custom autograd functions: exact beside libtorch's own, freed with the graph, and
//! every fault in them an error at `backward`.
use crate::common;
use crate::golden::same_bits;
use crate::parity_llama::F32;
use downhill::autograd::{
    Grads, Need, checkpoint, checkpoint_kept, clear_grad, custom, gradcheck,
    parallel_for, vjp,
};
use downhill::lora::{LoraConfig, attach};
use downhill::models::{LoadOptions, load};
use downhill::nn::Mode;
use downhill::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tch::{Device, Kind, Tensor};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn values(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double)).expect("a vector")
}

/// `x³`, with `factor · x²` for a derivative: 3 is right.
fn cube(x: &Tensor, factor: f64) -> Result<Tensor> {
    let kept = x.detach();
    let forward = || Ok(vec![x * x * x]);
    let backward = move |dy: &[Option<Tensor>]| {
        Ok(vec![dy[0].as_ref().map(|dy| dy * &kept * &kept * factor)])
    };
    Ok(custom(&[x], forward, backward)?.remove(0))
}

/// The identity with this backward.
fn identity(
    x: &Tensor,
    backward: impl FnMut(&[Option<Tensor>]) -> Result<Grads> + Send + 'static,
) -> Tensor {
    custom(&[x], || Ok(vec![x * 1.]), backward).expect("recorded").remove(0)
}

fn backward_error(y: &Tensor) -> String {
    let failed = y.sum(Kind::Double).f_backward();
    failed.expect_err("backward must fail").to_string()
}

#[test]
fn gradients_are_exact_in_f64() {
    let numbers = [-1.5, 0.25, 0., 3.];
    let (ours, theirs) = (leaf(&numbers), leaf(&numbers));
    let y = cube(&ours, 3.).unwrap();
    assert_eq!(values(&y), values(&(&theirs * &theirs * &theirs)));
    // In the middle of a graph: something before it, something after.
    (cube(&(&ours * 2.), 3.).unwrap().sin() * &y).sum(Kind::Double).backward();
    let (a, b) = (&theirs * 2., &theirs * &theirs * &theirs);
    ((&a * &a * &a).sin() * b).sum(Kind::Double).backward();
    let (ours, theirs) = (values(&ours.grad()), values(&theirs.grad()));
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() <= 1e-14 * b.abs().max(1.), "{ours:?} {theirs:?}");
    }
}

#[test]
fn gradcheck_tells_right_from_wrong() {
    let x = || [leaf(&[0.5, -1.25, 2.])];
    let run = |factor: f64, x: &[Tensor]| {
        gradcheck(|x| cube(&x[0], factor), x, 1e-5, 1e-8, 1e-7)
    };
    run(3., &x()).expect("the right derivative");
    let text = common::refused(run(3.001, &x()), &["input 0, element 0"]);
    assert!(text.contains("finite differences"), "{text}");

    // A gradient for the wrong elements, and one that is missing.
    let flipped = |x: &[Tensor]| {
        Ok(identity(&x[0], |dy| Ok(vec![dy[0].as_ref().map(|d| d.flip([0]))])))
    };
    assert!(gradcheck(flipped, &x(), 1e-5, 1e-8, 1e-7).is_err());
    let absent = |x: &[Tensor]| Ok(identity(&x[0], |_| Ok(vec![None])));
    assert!(gradcheck(absent, &x(), 1e-5, 1e-8, 1e-7).is_err());
    // NaN is not "close enough".
    let nan = |x: &[Tensor]| {
        Ok(identity(&x[0], |dy| Ok(vec![dy[0].as_ref().map(|d| d * f64::NAN)])))
    };
    assert!(gradcheck(nan, &x(), 1e-5, 1e-8, 1e-7).is_err());

    let f32 = [Tensor::from_slice(&[1f32]).set_requires_grad(true)];
    common::refused(run(3., &f32), &["Double"]);
}

/// `(a b + s, a / b)`: two inputs, two outputs, and a state that is no tensor.
fn product_and_quotient(a: &Tensor, b: &Tensor, shift: f64) -> Result<Vec<Tensor>> {
    let (ka, kb) = (a.detach(), b.detach());
    let names = ["product".to_string(), "quotient".into()];
    custom(
        &[a, b],
        || Ok(vec![a * b + shift, a / b]),
        move |dy| {
            assert_eq!(names.len(), dy.len());
            let zero = ka.zeros_like();
            let [p, q] = [0, 1].map(|i| dy[i].as_ref().unwrap_or(&zero));
            let da = p * &kb + q / &kb;
            let db = p * &ka - q * &ka / (&kb * &kb);
            Ok(vec![Some(da), Some(db)])
        },
    )
}

#[test]
fn several_inputs_and_outputs() {
    let inputs = [leaf(&[1., -2., 0.5]), leaf(&[2., 3., -1.5])];
    for (p, q) in [(1., 1.), (1., 0.), (0., 1.), (-0.5, 2.)] {
        let f = |x: &[Tensor]| {
            let y = product_and_quotient(&x[0], &x[1], 7.)?;
            Ok(&y[0] * p + &y[1] * q)
        };
        gradcheck(f, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    }
    // One input twice: both gradients add up.
    let same = |x: &[Tensor]| Ok(product_and_quotient(&x[0], &x[0], 0.)?.remove(0));
    gradcheck(same, &inputs[..1], 1e-6, 1e-8, 1e-7).unwrap();
}

#[test]
fn an_unused_output_sends_none() {
    let x = leaf(&[1., 2.]);
    let seen = Arc::new(AtomicUsize::new(0));
    let witness = seen.clone();
    let y = custom(
        &[&x],
        || Ok(vec![&x * 2., &x * 3.]),
        move |dy| {
            assert_eq!(dy.len(), 2);
            assert!(dy[0].is_none(), "nothing used the first output");
            witness.fetch_add(1, SeqCst);
            Ok(vec![dy[1].as_ref().map(|d| d * 3.)])
        },
    )
    .unwrap();
    y[1].sum(Kind::Double).backward();
    assert_eq!((seen.load(SeqCst), values(&x.grad())), (1, vec![3., 3.]));
}

#[test]
fn constants_and_absent_gradients() {
    let (x, constant) = (leaf(&[1., 2.]), Tensor::from_slice(&[5., 5.]));
    let y = custom(
        &[&x, &constant],
        || Ok(vec![&x * &constant]),
        |dy| {
            // A gradient for the constant is allowed, and goes nowhere.
            let d = dy[0].as_ref().map(|d| d * 5.);
            Ok(vec![d, dy[0].as_ref().map(Tensor::ones_like)])
        },
    );
    y.unwrap()[0].sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [5., 5.]);
    assert!(!constant.grad().defined());

    // `None` is a zero gradient: what flows another way is untouched.
    let x = leaf(&[1., 2.]);
    let y = identity(&x, |_| Ok(vec![None])) + &x * 4.;
    y.sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [4., 4.]);
}

/// Counts its own drops.
struct Counted(Arc<AtomicUsize>);
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn state_is_freed_with_the_graph() {
    let drops = Arc::new(AtomicUsize::new(0));
    let record = |x: &Tensor| {
        let state = Counted(drops.clone());
        identity(x, move |dy| {
            let _ = &state;
            Ok(vec![dy[0].as_ref().map(Tensor::shallow_clone)])
        })
    };
    let (x, constant) = (leaf(&[1.]), Tensor::from_slice(&[1.]));

    let y = record(&x);
    assert_eq!(drops.load(SeqCst), 0, "alive while backward may come");
    y.sum(Kind::Double).backward();
    assert_eq!(drops.load(SeqCst), 1, "after backward, though `y` lives");
    drop(y);
    assert_eq!(drops.load(SeqCst), 1, "once only");

    drop(record(&x));
    assert_eq!(drops.load(SeqCst), 2, "with a graph that never ran");
    let tail = (record(&x) * 2.).sin();
    assert_eq!(drops.load(SeqCst), 2);
    drop(tail);
    assert_eq!(drops.load(SeqCst), 3, "with the last tensor that needs it");

    let y = record(&constant);
    assert_eq!((drops.load(SeqCst), y.requires_grad()), (4, false));
    let y = tch::no_grad(|| record(&x));
    assert_eq!((drops.load(SeqCst), y.requires_grad()), (5, false));

    // A kept graph keeps it; a deep one is freed without a deep recursion.
    let y = record(&x).sum(Kind::Double);
    for _ in 0..2 {
        Tensor::f_run_backward(&[&y], &[&x], true, false).unwrap();
    }
    assert_eq!(drops.load(SeqCst), 5);
    drop(y);
    assert_eq!(drops.load(SeqCst), 6);
    let mut y = x.shallow_clone();
    for _ in 0..20_000 {
        y = record(&y);
    }
    drop(y);
    assert_eq!(drops.load(SeqCst), 20_006);
}

#[test]
fn an_error_in_forward_is_returned_and_frees_the_state() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (x, state) = (leaf(&[1.]), Counted(drops.clone()));
    let failed = custom(
        &[&x],
        || Err(Error::setting("blocksize", "found 7")),
        move |_| {
            let _ = &state;
            Ok(vec![None])
        },
    );
    common::refused(failed, &["blocksize", "found 7"]);
    assert_eq!(drops.load(SeqCst), 1);
}

#[test]
fn errors_and_panics_in_backward_become_errors() {
    let x = leaf(&[1., 2.]);
    let fails = |what: fn() -> Result<Grads>| identity(&x, move |_| what());
    let y = fails(|| Err(Error::setting("blocksize", "found 7, expected 64")));
    let text = backward_error(&y);
    assert!(text.contains("blocksize: found 7, expected 64"), "{text}");

    let text = backward_error(&fails(|| panic!("no such row")));
    assert!(text.contains("no such row") && text.contains("panic"), "{text}");
    let text = backward_error(&fails(|| panic!("row {}", 40 + 2)));
    assert!(text.contains("row 42"), "{text}");
    let text = backward_error(&fails(|| std::panic::panic_any(7)));
    assert!(text.contains("panic"), "{text}");
    // libtorch's own errors pass through as well.
    let text = backward_error(&fails(|| {
        let (a, b) = (Tensor::from_slice(&[1., 2.]), Tensor::from_slice(&[1.; 3]));
        Ok(vec![Some(a.f_add(&b)?)])
    }));
    assert!(text.contains("must match"), "{text}");
    // Longer than any buffer, and not one byte per character.
    let text = backward_error(&fails(|| panic!("{}", "läuft schief ".repeat(999))));
    assert!(text.contains("läuft schief"), "{text}");

    // And the process goes on as if nothing had been.
    let x = leaf(&[2.]);
    cube(&x, 3.).unwrap().sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [12.]);
}

#[test]
fn wrong_gradients_are_refused() {
    let x = leaf(&[1., 2.]);
    for count in [0, 2, 3] {
        let y = identity(&x, move |_| Ok((0..count).map(|_| None).collect()));
        let text = backward_error(&y);
        let said = format!("returned {count} gradients for 1 inputs");
        assert!(text.contains(&said), "{text}");
    }
    let y = identity(&x, |_| Ok(vec![Some(Tensor::from_slice(&[1.; 3]))]));
    let text = backward_error(&y);
    assert!(text.contains("RustFunction returned an invalid gradient"), "{text}");
    assert!(text.contains("[3]") && text.contains("[2]"), "{text}");
    assert!(!x.grad().defined(), "a wrong gradient went through");
}

#[test]
fn a_second_backward_needs_keep_graph() {
    let x = leaf(&[2.]);
    let y = cube(&x, 3.).unwrap().sum(Kind::Double);
    let run = |keep| Tensor::f_run_backward(&[&y], &[&x], keep, false);
    for keep in [true, true, false] {
        assert_eq!(values(&run(keep).expect("kept until now")[0]), [12.]);
    }
    let text = run(false).expect_err("freed").to_string();
    assert!(text.contains("keep_graph") || text.contains("second time"), "{text}");
    // Straight from the node, where no saved tensor of libtorch's own complains.
    let y = identity(&x, |dy| Ok(vec![dy[0].as_ref().map(|d| d * 2.)]));
    y.f_backward().unwrap();
    let text = y.f_backward().expect_err("freed").to_string();
    assert!(text.contains("freed by an earlier backward"), "{text}");
}

#[test]
fn backward_on_another_thread() {
    let x = leaf(&[2., 3.]);
    let y = cube(&x, 3.).unwrap().sum(Kind::Double);
    let home = std::thread::current().id();
    std::thread::spawn(move || {
        assert_ne!(std::thread::current().id(), home);
        y.backward();
    })
    .join()
    .unwrap();
    assert_eq!(values(&x.grad()), [12., 27.]);

    // Errors too, and eight threads at a time.
    let threads: Vec<_> = (0..8)
        .map(|i| {
            std::thread::spawn(move || {
                let x = leaf(&[f64::from(i)]);
                let y = identity(&x, |_| panic!("in a thread"));
                assert!(backward_error(&y).contains("in a thread"));
                cube(&x, 3.).unwrap().sum(Kind::Double).backward();
                assert_eq!(values(&x.grad()), [f64::from(3 * i * i)]);
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn an_output_that_is_an_input() {
    let x = leaf(&[1., 2.]);
    let double = |dy: &[Option<Tensor>]| Ok(vec![dy[0].as_ref().map(|d| d * 2.)]);
    let y = custom(&[&x], || Ok(vec![x.shallow_clone()]), double).unwrap();
    assert!(x.is_leaf(), "the input keeps its own history");
    y[0].sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [2., 2.]);
    assert_eq!(y[0].data_ptr(), x.data_ptr(), "no copy was made");
}

#[test]
fn outputs_without_gradients_are_refused() {
    let x = leaf(&[1., 2.]);
    let whole = || Ok(vec![&x * 1., x.to_kind(Kind::Int64)]);
    let y = custom(&[&x], whole, |_| Ok(vec![None]));
    common::refused(y, &["output 1", "Int64", "floating-point"]);
}

#[test]
fn vjp_is_the_product_with_the_jacobian() {
    let (x, apart) = (leaf(&[1., 2.]), leaf(&[1.]));
    let y = &x * &x;
    let grads = vjp(&y, &Tensor::from_slice(&[10., 100.]), &[&x, &apart]).unwrap();
    assert_eq!(values(grads[0].as_ref().unwrap()), [20., 400.]);
    assert!(grads[1].is_none());
    assert!(!x.grad().defined(), "`.grad` is untouched");
    // What y is does not matter, only how it came about.
    let y = &x + f64::NAN;
    let grads = vjp(&y, &Tensor::from_slice(&[10., 100.]), &[&x]).unwrap();
    assert_eq!(values(grads[0].as_ref().unwrap()), [10., 100.]);
}

#[test]
fn clear_grad_forgets() {
    let x = leaf(&[3.]);
    (&x * 2.).backward();
    assert!(x.grad().defined());
    clear_grad(&x);
    assert!(!x.grad().defined());
    clear_grad(&x);
    (&x * 2.).backward();
    assert_eq!(values(&x.grad()), [2.], "a fresh one, not a sum");
    clear_grad(&Tensor::from_slice(&[1.]));
}

#[test]
fn checkpointed_gradients_have_the_same_bits() {
    let f = |xs: &[Tensor]| Ok((xs[0].matmul(&xs[1]).gelu("none") * &xs[2]).tanh());
    let run = |checkpointed: bool| {
        let leaf =
            |shape: &[i64]| common::wave(shape, Kind::Float).set_requires_grad(true);
        let xs = [leaf(&[5, 8]), leaf(&[8, 4]), common::wave(&[4], Kind::Float)];
        let y = match checkpointed {
            true => checkpoint(&[&xs[0], &xs[1], &xs[2]], f),
            false => f(&xs),
        };
        let y = y.unwrap();
        (&y * &y).sum(Kind::Float).backward();
        assert!(!xs[2].grad().defined());
        [y.detach(), xs[0].grad(), xs[1].grad()]
    };
    for (plain, again) in run(false).iter().zip(&run(true)) {
        assert!(same_bits(plain, again));
    }
    // The recomputation's own errors come out of backward.
    let x = leaf(&[1.]);
    let calls = AtomicUsize::new(0);
    let y = checkpoint(&[&x], move |xs| match calls.fetch_add(1, SeqCst) {
        0 => Ok(&xs[0] * 2.),
        _ => Err(Error::setting("layer", "gone")),
    });
    assert!(backward_error(&y.unwrap()).contains("layer: gone"));
}

#[test]
fn a_second_pass_is_told_that_nobody_reads_it() {
    let told = Arc::new(std::sync::Mutex::new(vec![]));
    let (x, w) = (leaf(&[1., 2.]), told.clone());
    let y = checkpoint_kept(&[&x], false, move |xs, need| {
        w.lock().unwrap().push(need);
        let like = xs[0].detach();
        let forward = || Ok(vec![need.of(&[2], &like, || Ok(&xs[0] * 3.))?]);
        let back = |dy: &[Option<Tensor>]| Ok(vec![dy[0].as_ref().map(|d| d * 3.)]);
        Ok(custom(&[&xs[0]], forward, back)?.remove(0))
    });
    let y = y.unwrap();
    assert_eq!(values(&y), [3., 6.]);
    (&y * &y).sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [18., 36.], "2 y · 3, of the first pass's y");
    assert_eq!(*told.lock().unwrap(), [Need::Value, Need::Graph]);
}

/// Of every sort: weights dense, in 4 bits, and dequantized once and for all; in f32
/// and bf16; adapters everywhere with dropout, or on the first product alone, and DoRA.
#[test]
fn checkpointing_changes_no_bit_of_any_layer() {
    let dir = tempfile::tempdir().unwrap();
    common::write_checkpoint(dir.path(), 4);
    let all = common::lora(&["all-linear"], 0.3);
    let adapters = [
        common::lora(&["all-linear"], 0.),
        common::lora(&["q_proj"], 0.3),
        LoraConfig { use_dora: true, ..all.clone() },
        LoraConfig { lora_bias: true, ..all.clone() },
        all,
    ];
    for (quantize, held, kind) in [
        (false, false, Kind::Float),
        (true, false, Kind::Float),
        (true, false, Kind::BFloat16),
        (true, true, Kind::BFloat16),
    ] {
        for config in &adapters {
            let pass = |checkpointing: bool| {
                let options = LoadOptions { quantize, kind, ..F32 };
                let mut model = load(dir.path(), &options, &mut |_, _| ()).unwrap();
                if held {
                    model.hold_dequantized();
                }
                let cpu = Device::Cpu;
                let named = attach(model.linears_mut(), config, 2, cpu).unwrap();
                tch::no_grad(|| {
                    for (_, t) in named.iter().filter(|(n, _)| n.contains("lora_B"))
                    {
                        let wave = common::wave(&t.size(), Kind::Float) - 0.5;
                        t.shallow_clone().copy_(&wave);
                    }
                });
                model.checkpointing = checkpointing;
                let mode = Mode::Train { seed: 5, step: 3 };
                let hidden = model.hidden(&common::ids(2, 9), mode, None).unwrap();
                hidden.square().mean(Kind::Float).backward();
                let grads = named.iter().map(|(_, t)| t.grad());
                grads.chain([hidden.detach()]).collect::<Vec<_>>()
            };
            for (a, b) in pass(false).iter().zip(&pass(true)) {
                assert!(a.defined() && a.abs().max().double_value(&[]) > 0.);
                assert!(same_bits(a, b), "{quantize} {held} {kind:?} {config:?}");
            }
        }
    }
}

#[test]
fn a_checkpointed_decoder_has_the_same_bits() {
    let run = |checkpointing: bool, step: u64| pass(checkpointing, false, step);
    let ((plain, grads), (again, recomputed)) = (run(false, 3), run(true, 3));
    let (offloaded, moved) = pass(true, true, 3);
    assert!(same_bits(&plain, &again) && same_bits(&plain, &offloaded));
    assert_eq!(grads.len(), 2 * 2 * 7);
    for ((name, a), (_, b)) in grads.iter().zip(&recomputed) {
        assert!(a.defined() && a.abs().max().double_value(&[]) > 0., "{name}");
        assert!(same_bits(a, b), "{name}");
    }
    for ((name, a), (_, b)) in grads.iter().zip(&moved) {
        assert!(same_bits(a, b), "{name}, its block's input kept apart");
    }
    // Not because dropout did nothing.
    assert!(!same_bits(&plain, &run(true, 4).0));
}

/// Scores and gradients of a small model under a step's dropout.
fn pass(
    checkpointing: bool,
    offload: bool,
    step: u64,
) -> (Tensor, Vec<(String, Tensor)>) {
    let config = common::lora(&["all-linear"], 0.3);
    let (mut model, named) = common::adapted(1, &config);
    (model.checkpointing, model.offload) = (checkpointing, offload);
    let mode = Mode::Train { seed: 5, step };
    let hidden = model.hidden(&common::ids(2, 9), mode, None).unwrap();
    let logits = model.logits(&hidden).unwrap();
    (&logits * &logits).mean(Kind::Float).backward();
    let grads = named.into_iter().map(|(name, t)| (name, t.grad()));
    (logits.detach(), grads.collect())
}

#[test]
fn parallel_for_covers_each_index_once() {
    for n in [0, 1, 2, 7, 1000, 100_003] {
        for grain in [1, 64, 1 << 20] {
            let hits: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            parallel_for(n, grain, |range| {
                for i in range {
                    hits[i].fetch_add(1, SeqCst);
                }
            });
            let once = hits.iter().all(|h| h.load(SeqCst) == 1);
            assert!(once, "n = {n}, grain = {grain}");
        }
    }
}

#[test]
fn a_panic_in_parallel_for_propagates() {
    let run = || {
        parallel_for(1000, 1, |range| {
            if range.contains(&900) {
                // A panic without the hook, which would print a trace into the log.
                std::panic::resume_unwind(Box::new("index 900 is bad"));
            }
        })
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("a panic");
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    let text = text.or(panic.downcast_ref::<String>().cloned()).unwrap();
    assert!(text.contains("index 900 is bad"), "{text}");
    parallel_for(10, 1, |_| ()); // the threads are still there
}

#[test]
fn on_cuda() {
    let Some(device) = common::cuda() else { return };
    let x = leaf(&[2., 3.]).to_device(device).detach().set_requires_grad(true);
    // CUDA's backward has a thread of its own.
    let home = std::thread::current().id();
    let y = identity(&x, move |dy| {
        assert_ne!(std::thread::current().id(), home);
        Ok(vec![dy[0].as_ref().map(|d| d * 2.)])
    });
    y.sum(Kind::Double).backward();
    assert_eq!(values(&x.grad()), [2., 2.]);
    let text = backward_error(&identity(&x, |_| panic!("on its thread")));
    assert!(text.contains("on its thread"), "{text}");
}
