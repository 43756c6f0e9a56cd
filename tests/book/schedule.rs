//! Schedules are pure functions of the step, with known values at the corners.
//! (`parity_optim` compares every step with transformers.)
use downhill::schedule::{Schedule, constant, constant_with_warmup, cosine, linear};

type Boxed = Box<dyn Schedule>;

/// All four, with their names, for one peak, warmup and end.
fn all(peak: f64, warmup: i64, total: i64) -> [(&'static str, Boxed); 4] {
    [
        ("constant", Box::new(constant(peak))),
        ("constant_with_warmup", Box::new(constant_with_warmup(peak, warmup))),
        ("linear", Box::new(linear(peak, warmup, total))),
        ("cosine", Box::new(cosine(peak, warmup, total))),
    ]
}

#[test]
fn corners() {
    let (peak, warmup, total) = (3e-4, 10, 110);
    for (name, s) in all(peak, warmup, total) {
        if name == "constant" {
            assert!([0, 1, 5, 10_000].iter().all(|&t| s.lr(t) == peak));
            continue;
        }
        assert_eq!(s.lr(0), 0., "{name} starts from nothing");
        assert!((s.lr(5) - peak / 2.).abs() < 1e-18, "{name}");
        assert_eq!(s.lr(warmup), peak, "{name} reaches its peak");
        let decays = name != "constant_with_warmup";
        let middle = if decays { peak / 2. } else { peak };
        assert!((s.lr(60) - middle).abs() < 1e-15, "{name} half way");
        let end = if decays { 0. } else { peak };
        assert!((s.lr(total) - end).abs() < 1e-18, "{name} at the end");
        assert!((s.lr(10 * total) - end).abs() < 1e-18, "{name} ever after");
    }
}

#[test]
fn bounded_and_monotonic_whatever_the_lengths() {
    for (warmup, total) in [(0, 1), (0, 100), (1, 2), (30, 100), (100, 100), (7, 3)]
    {
        for (name, s) in all(1., warmup, total) {
            let lr: Vec<f64> = (0..2 * total + 20).map(|t| s.lr(t)).collect();
            let at = format!("{name}, warmup {warmup}, total {total}");
            assert!(lr.iter().all(|x| (0. ..=1.).contains(x)), "{at}: {lr:?}");
            let rising = lr.iter().take(warmup as usize);
            if name != "linear" && name != "constant" {
                assert!(rising.is_sorted(), "{at}: {lr:?}");
            }
            let after = lr.iter().skip(warmup as usize);
            assert!(after.rev().is_sorted(), "{at}: {lr:?}");
        }
    }
}

#[test]
fn they_scale_with_the_peak_and_forget_nothing() {
    for ((name, one), (_, ten)) in all(1., 5, 50).iter().zip(all(10., 5, 50)) {
        // Backwards and repeated: a schedule that counts its calls would differ.
        for t in (0..60).rev().chain([7, 7, 7]) {
            assert!((10. * one.lr(t) - ten.lr(t)).abs() < 1e-14, "{name} at {t}");
        }
    }
}

#[test]
fn any_function_of_the_step_is_one() {
    fn use_it(s: &dyn Schedule) -> f64 {
        s.lr(4)
    }
    assert_eq!(use_it(&|t: i64| t as f64 * 0.5), 2.);
    // Composed: a cosine whose second half is frozen.
    let base = cosine(1., 0, 100);
    let frozen = |t: i64| base.lr(t.min(50));
    assert_eq!(frozen.lr(90), base.lr(50));
}
