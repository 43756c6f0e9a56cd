//! The two libraries for products in f32: both right, whatever the strides, also from
//! the threads of `parallel_for`, where each of them may use one core only.
use crate::common::skipped;
use downhill::autograd::{self, Library, parallel_for};
use downhill::nn::{Linear, Mode};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

const SHAPES: [(i64, i64, i64); 7] = [
    (120, 576, 1536),
    (30, 576, 192),
    (4, 11008, 64),
    (17, 1000, 77),
    (5, 63, 31),
    (1, 576, 9),
    (64, 1, 3),
];

/// The libraries that multiply on this processor; says which does not.
fn libraries() -> Vec<Library> {
    let both = [Library::Libtorch, Library::OneDnn];
    let (here, not): (Vec<_>, Vec<_>) = both.into_iter().partition(|l| l.works());
    for library in not {
        skipped("processor", &format!("{library:?} does not multiply in f32 here"));
    }
    here
}

/// Values between -1 and 1 without a pattern that a product would show.
fn wave(shape: &[i64], seed: i64) -> Tensor {
    let n = shape.iter().product::<i64>();
    let t = Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + seed;
    ((t.sin() * 43758.5453).frac() * 2. - 1.).to_kind(Kind::Float).view(shape)
}

/// Rounding errors of k terms grow with the root of k if they are as good as random.
fn most(k: i64) -> f64 {
    1. + (k as f64).sqrt()
}

/// The error of `y` against a product in f64, in units of f32 rounding at the size that
/// the terms of each sum have together.
fn error(y: &Tensor, a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let scale = a.abs().mm(&b.abs()) * f64::from(f32::EPSILON);
    ((y.to_kind(Kind::Double) - a.mm(&b)).abs() / scale).max().double_value(&[])
}

#[test]
fn both_libraries_multiply() {
    for library in libraries() {
        for (m, k, n) in SHAPES {
            let (a, w) = (wave(&[m, k], 1), wave(&[n, k], 2));
            let wide = Tensor::zeros([m, 3 * n], (Kind::Float, Device::Cpu));
            let mut out = wide.narrow(1, n, n); // columns, as a panel writes them
            library.mm(&a, &w.tr(), &mut out, false).unwrap();
            let off = error(&out, &a, &w.tr());
            assert!(off < most(k), "{library:?} {m}x{k}x{n}: {off}");
            let beside = wide.narrow(1, 0, n).abs().max().double_value(&[])
                + wide.narrow(1, 2 * n, n).abs().max().double_value(&[]);
            assert_eq!(beside, 0., "{library:?} wrote outside its columns");
            library.mm(&a, &w.tr(), &mut out, true).unwrap();
            let off = error(&(&out / 2.), &a, &w.tr());
            assert!(off < most(k), "{library:?} added {m}x{k}x{n}: {off}");
            // A part of the columns, as the gradient of a panel's input.
            let y = wave(&[m, 2 * n], 3).narrow(1, n / 2, n);
            let mut dx = Tensor::zeros([m, k], (Kind::Float, Device::Cpu));
            library.mm(&y, &w, &mut dx, false).unwrap();
            let off = error(&dx, &y, &w);
            assert!(off < most(k), "{library:?} columns {m}x{k}x{n}: {off}");
        }
    }
}

#[test]
fn threads_of_ours_get_whole_products() {
    struct Shared(Tensor);
    // SAFETY is not in question for the test: each thread writes its own columns.
    #[allow(unsafe_code)]
    unsafe impl Sync for Shared {}
    let library = *libraries().last().unwrap();
    for (m, k, n) in SHAPES {
        let (a, w) = (wave(&[m, k], 1), wave(&[n, k], 2));
        let y = Tensor::zeros([m, n], (Kind::Float, Device::Cpu));
        let (a, w, y) = (Shared(a), Shared(w), Shared(y));
        let (a, w, y) = (&a, &w, &y);
        let first = Mutex::new(None);
        for _ in 0..5 {
            let _ = y.0.shallow_clone().fill_(7.);
            parallel_for(n as usize, (n as usize).div_ceil(2), |range| {
                let (start, len) = (range.start as i64, range.len() as i64);
                let part = w.0.narrow(0, start, len).tr();
                let mut out = y.0.narrow(1, start, len);
                library.mm(&a.0, &part, &mut out, false).unwrap();
            });
            let off = error(&y.0, &a.0, &w.0.tr());
            assert!(off < most(k), "{m}x{k}x{n}: {off}");
            let mut first = first.lock().unwrap();
            let first: &mut Option<Tensor> = &mut first;
            assert!(first.as_ref().is_none_or(|f| f.equal(&y.0)), "other bits");
            *first = Some(y.0.copy());
        }
    }
}

#[test]
fn a_frozen_dense_layer_has_the_gradients_of_libtorch() {
    let (w, b, x) = (wave(&[48, 96], 1), wave(&[48], 2), wave(&[3, 5, 96], 3));
    let grad = |layer: &Linear, x: &Tensor| {
        let x = x.copy().set_requires_grad(true);
        let y = layer.forward(&x, Mode::Eval).unwrap();
        y.square().sum(Kind::Float).backward();
        (y.detach(), x.grad())
    };
    let frozen = Linear::dense(w.copy(), Some(b.copy()));
    let learns = Linear::dense(w.copy().set_requires_grad(true), Some(b.copy()));
    let ((y, dx), (y2, dx2)) = (grad(&frozen, &x), grad(&learns, &x));
    assert_eq!(y.size(), [3, 5, 48]);
    assert!(y.allclose(&y2, 1e-5, 1e-5, false), "forward");
    assert!(dx.allclose(&dx2, 1e-5, 1e-4, false), "gradient");
    // Nothing is recorded where nothing asks for a gradient.
    assert!(!frozen.forward(&x, Mode::Eval).unwrap().requires_grad());
    let fastest = Library::fastest();
    assert_eq!(autograd::Library::of(&x), fastest);
    assert_eq!(Library::of(&x.narrow(0, 0, 1).narrow(1, 0, 1)), Library::Libtorch);
}

/// oneDNN is asked only where it answers; where it does not, libtorch serves.
#[test]
fn a_product_that_onednn_refuses_is_still_made() {
    assert!(Library::fastest().works());
    // oneDNN has no products in f64, whatever the processor.
    let (a, w) = (wave(&[7, 40], 1), wave(&[9, 40], 2));
    let (a, w) = (a.to_kind(Kind::Double), w.to_kind(Kind::Double));
    let mut y = Tensor::ones([7, 9], (Kind::Double, Device::Cpu));
    Library::OneDnn.mm(&a, &w.tr(), &mut y, false).unwrap();
    assert!(error(&y, &a, &w.tr()) < 1e-6);
    Library::OneDnn.mm(&a, &w.tr(), &mut y, true).unwrap();
    assert!(error(&(&y / 2.), &a, &w.tr()) < 1e-6);
}

#[test]
fn factors_that_do_not_fit_are_an_error() {
    let (a, b) = (wave(&[8, 4], 1), wave(&[5, 8], 2));
    for library in [Library::Libtorch, Library::OneDnn] {
        let mut out = Tensor::zeros([8, 8], (Kind::Float, Device::Cpu));
        assert!(library.mm(&a, &b, &mut out, false).is_err(), "{library:?}");
    }
}
