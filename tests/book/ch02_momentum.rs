//! Chapter 2: what must hold of momentum, and that the known mistakes would be noticed.
//! That `Sgd` is torch's is shown in `parity_optim`.
use crate::golden::{floats, json, same_bits};
use crate::parity_optim::run_with;
use downhill::optim::{Driver, Hyper, Optimizer, Param, Rule, Sgd};
use std::collections::HashMap;
use tch::{Kind, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    FirstDampened,
    NesterovAsHeavy,
    BufferIsMean,
    RateInBuffer,
    NesterovTwice,
}

/// A copy of `Sgd::update` in which one mistake can be made.
struct Mutant(Sgd, Mistake);

impl Rule<1> for Mutant {
    const SLOTS: [&'static str; 1] = ["b"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [b]: [&mut Tensor; 1],
        h: Hyper,
    ) {
        use Mistake::*;
        let Sgd { momentum: mu, dampening: tau, nesterov, .. } = self.0;
        let g = &(g + h.wd * &*theta);
        let part = if self.1 == BufferIsMean { 1. - mu } else { 1. - tau };
        let rate = if self.1 == RateInBuffer { h.lr } else { 1. };
        if h.t == 1 && self.1 != FirstDampened {
            b.copy_(&(rate * g));
        } else {
            *b = mu * &*b + part * rate * g;
        }
        let g = match (nesterov, self.1) {
            (true, NesterovTwice) => g + mu * (g + mu * &*b),
            (true, m) if m != NesterovAsHeavy => rate * g + mu * &*b,
            _ => b.copy(),
        };
        *theta -= if self.1 == RateInBuffer { g } else { h.lr * g };
    }
}

fn gap_to_torch(mistake: Mistake) -> f64 {
    let golden = json("optim_sgd.json");
    let at = floats(&golden["at"]);
    let cases = golden["cases"].as_array().unwrap().iter().filter(|c| {
        let plain = c["maximize"] == false;
        let heavy = c["rule"] == "sgd" && c["momentum"].as_f64() > Some(0.);
        heavy && plain && c["kind"] == "f64" && c["problem"] == "logistic"
    });
    let mut worst = 0f64;
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let rule = Sgd {
            momentum: number("momentum"),
            dampening: number("dampening"),
            nesterov: case["nesterov"] == true,
            maximize: false,
        };
        worst = worst.max(run_with(case, &at, |params| -> Box<dyn Optimizer> {
            Box::new(Driver::new(Mutant(rule, mistake), params))
        }));
    }
    worst
}

#[test]
fn known_mistakes_fail_the_comparison_with_torch() {
    use Mistake::*;
    let far = gap_to_torch(None);
    assert!(far < 1e-12, "{far:e} without a mistake");
    for mistake in
        [FirstDampened, NesterovAsHeavy, BufferIsMean, NesterovTwice, RateInBuffer]
    {
        let far = gap_to_torch(mistake);
        assert!(far > 1e-5, "{mistake:?} is only {far:e} from torch");
    }
}

/// Positions on ½ c x² from 1.
fn bowl(momentum: f64, curvature: f64, lr: f64, steps: i32) -> Vec<f64> {
    let rule = Sgd { momentum, ..Sgd::default() };
    let mut theta = Tensor::from_slice(&[1f64]);
    let mut slots = rule.init(&theta);
    let step = |t: i32| {
        let g = curvature * &theta;
        let h = Hyper { t: t + 1, lr, wd: 0. };
        rule.update(&mut theta, &g, slots.each_mut(), h);
        theta.double_value(&[0])
    };
    (0..steps).map(step).collect()
}

/// Underdamped, the envelope shrinks by √μ a step, whatever rate and curvature.
#[test]
fn an_underdamped_ball_shrinks_by_the_root_of_its_momentum() {
    for (mu, curvature, lr) in [(0.9, 1., 0.1), (0.9, 7., 0.05), (0.97, 1., 0.01)] {
        let path = bowl(mu, curvature, lr, 400);
        let peak = |from: usize| {
            path[from..from + 100].iter().fold(0f64, |m, x| m.max(x.abs()))
        };
        let rate = (peak(250) / peak(50)).powf(1. / 200.);
        assert!((rate / f64::sqrt(mu) - 1.).abs() < 2e-3, "{mu}: {rate}");
    }
}

/// With momentum the border of divergence moves to 2 (1 + μ) / L.
#[test]
fn the_border_moves_with_momentum() {
    for mu in [0., 0.5, 0.9] {
        for (share, grows) in [(0.99, false), (1.01, true)] {
            let path = bowl(mu, 3., share * 2. * (1. + mu) / 3., 3000);
            let last = path[2990..].iter().fold(0f64, |m, x| m.max(x.abs()));
            assert_eq!(last > 1. || last.is_nan(), grows, "{mu} {share}: {last}");
        }
    }
}

/// Nesterov takes the gradient at x + μ v. That place moves as PyTorch's θ does.
#[test]
fn the_look_ahead_moves_as_theta_does() {
    let gradient = |x: f64| x + 3. * x.powi(3);
    for (mu, lr) in [(0.5, 0.1), (0.9, 0.02)] {
        let rule = Sgd { momentum: mu, nesterov: true, ..Sgd::default() };
        let mut theta = Tensor::from_slice(&[1f64]);
        let mut slots = rule.init(&theta);
        let (mut x, mut v) = (1f64, 0f64);
        for t in 1..=100 {
            let g = Tensor::from_slice(&[gradient(theta.double_value(&[0]))]);
            rule.update(&mut theta, &g, slots.each_mut(), Hyper { t, lr, wd: 0. });
            v = mu * v - lr * gradient(x + mu * v);
            x += v;
            let ahead = x + mu * v;
            assert!((theta.double_value(&[0]) - ahead).abs() < 1e-12, "step {t}");
        }
    }
}

/// A buffer that is saved and loaded goes on to the same bits; one that is lost does
/// not.
#[test]
fn the_buffer_belongs_to_the_state() {
    let make = || {
        let x = Tensor::from_slice(&[1f64, -2.]).set_requires_grad(true);
        let named = [("x".to_string(), x.shallow_clone())];
        let rule = Sgd { momentum: 0.9, ..Sgd::default() };
        (Driver::new(rule, Param::with_decay(named, |_, _| 0.)), x)
    };
    let run = |o: &mut dyn Optimizer, x: &Tensor, steps: i64| {
        for _ in 0..steps {
            o.zero_grad();
            (x * x).sum(Kind::Double).backward();
            o.step(0.01);
        }
    };
    let (mut whole, x) = make();
    run(&mut whole, &x, 40);
    let (mut first, y) = make();
    run(&mut first, &y, 20);
    for keep in [true, false] {
        let (mut second, z) = make();
        tch::no_grad(|| z.shallow_clone().copy_(&y));
        if keep {
            let saved: HashMap<String, Tensor> =
                first.state().into_iter().map(|(k, t)| (k, t.copy())).collect();
            second.load_state(&saved).unwrap();
        }
        run(&mut second, &z, 20);
        assert_eq!(same_bits(&z.detach(), &x.detach()), keep);
    }
}
