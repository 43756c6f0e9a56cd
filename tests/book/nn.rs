//! The parts of the decoder against plain formulas.
use crate::common::{config, cuda, frozen, ids, wave};
use crate::golden::{gap, same_bits};
use downhill::autograd::{Need, gradcheck, vjp};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::dropout::{dropout, normal, philox, uniform};
use downhill::nn::{
    Adapter, Attention, Dora, Dropping, Gqa, Linear, Mode, RmsNorm, Rope,
    RopeScaling, Rows, SwiGlu, Weight, cross_entropy,
};
use downhill::quant::Nf4Tensor;
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// `kat_vectors` of Random123, the authors' own library.
#[test]
fn philox_known_answers() {
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let known = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            pi,
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in known {
        assert_eq!(philox(counter, key), expected, "{counter:x?} {key:x?}");
    }
}

fn train(step: u64) -> Mode {
    Mode::Train { seed: 42, step }
}

#[test]
fn dropout_drops_at_its_rate_and_keeps_the_mean() {
    let x = Tensor::ones([200_000], F32);
    for p in [0.05, 0.1, 0.5, 0.9] {
        let y = dropout(&x, p, train(1), 0);
        let n = x.numel() as f64;
        let zeros = y.eq(0.).sum(Kind::Float).double_value(&[]) / n;
        // Five standard deviations of a fair draw.
        let far = 5. * (p * (1. - p) / n).sqrt();
        assert!((zeros - p).abs() < far, "p {p}: {zeros}");
        let kept = y.masked_select(&y.ne(0.));
        let factor = (1. / (1. - (p * 65536f64).round() / 65536.)) as f32;
        assert!(bool::try_from(kept.eq(f64::from(factor)).all()).unwrap(), "p {p}");
    }
}

#[test]
fn dropout_is_the_identity_in_evaluation_and_at_zero() {
    let x = wave(&[7, 5], Kind::Float);
    assert!(same_bits(&dropout(&x, 0.5, Mode::Eval, 0), &x));
    assert!(same_bits(&dropout(&x, 0., train(1), 0), &x));
}

#[test]
fn dropout_repeats_for_the_same_place_and_only_then() {
    let x = Tensor::ones([1000], F32);
    let base = dropout(&x, 0.5, train(3), 7);
    assert!(same_bits(&base, &dropout(&x, 0.5, train(3), 7)));
    let others = [
        dropout(&x, 0.5, train(4), 7),
        dropout(&x, 0.5, train(3 + (1 << 32)), 7),
        dropout(&x, 0.5, train(3), 8),
        dropout(&x, 0.5, Mode::Train { seed: 43, step: 3 }, 7),
        dropout(&x, 0.5, Mode::Train { seed: 42 + (1 << 32), step: 3 }, 7),
    ];
    for (i, other) in others.iter().enumerate() {
        let same = base.eq_tensor(other).sum(Kind::Int64).int64_value(&[]);
        // Independent masks agree on half; one shifted or swapped would show too.
        assert!((400..600).contains(&same), "{i}: {same} of 1000 agree");
        let shifted = other.roll([1], [0]);
        let same = base.eq_tensor(&shifted).sum(Kind::Int64).int64_value(&[]);
        assert!((400..600).contains(&same), "{i}: {same} agree after a shift");
    }
    // A longer tensor begins with the shorter one's mask: (place, index) alone counts.
    let longer = dropout(&Tensor::ones([1003], F32), 0.5, train(3), 7);
    assert!(same_bits(&base, &longer.narrow(0, 0, 1000)));
    // In 16 bits the same elements fall.
    let half = dropout(&x.to_kind(Kind::BFloat16), 0.5, train(3), 7);
    assert!(same_bits(&half.to_kind(Kind::Float), &base));
    // And the others are multiplied by a factor in f32: one rounding, not two.
    let x = wave(&[1000], Kind::BFloat16);
    let (half, wide) = (&x, &x.to_kind(Kind::Float));
    let [half, wide] = [half, wide].map(|x| dropout(x, 0.05, train(3), 7));
    assert!(same_bits(&half, &wide.to_kind(Kind::BFloat16)));
}

/// The masks are what the docs say, draw by draw: whatever vectors made them.
#[test]
fn dropout_masks_are_philox_draws() {
    let (p, n) = (0.3, 70_001);
    let below = (p * 65536f64).round() as u32;
    let mode = Mode::Train { seed: 5 + (7 << 32), step: 9 + (2 << 32) };
    let y = dropout(&Tensor::ones([n], F32), p, mode, 3);
    let found = Vec::<f32>::try_from(y).unwrap();
    let kept = (1. / (1. - f64::from(below) / 65536.)) as f32;
    for (i, found) in found.into_iter().enumerate() {
        let (group, place) = (i / 128, i % 128);
        let (word, half, lane) = (place / 32, place / 16 % 2, place % 16);
        let words = philox([(group * 16 + lane) as u32, 3, 9, 2], [5, 7]);
        let draw = words[word] >> (16 * half) & 0xFFFF;
        assert_eq!(found, if draw < below { 0. } else { kept }, "{i}");
    }
}

#[test]
fn dropout_passes_gradients_where_it_passes_values() {
    let x = Tensor::ones([100], F32).set_requires_grad(true);
    let y = dropout(&x, 0.3, train(1), 0);
    y.sum(Kind::Float).backward();
    assert!(same_bits(&x.grad(), &y.detach()));
}

#[test]
fn draws_have_their_moments() {
    let z = Tensor::from_slice(&normal(100_000, 1, 2)).to_kind(Kind::Double);
    let moment =
        |k: i32| z.pow_tensor_scalar(k as f64).mean(Kind::Double).double_value(&[]);
    for (k, expected, far) in
        [(1, 0., 0.02), (2, 1., 0.03), (3, 0., 0.1), (4, 3., 0.2)]
    {
        let found = moment(k);
        assert!((found - expected).abs() < far, "moment {k}: {found}");
    }
    let u = uniform(100_000, 0.25, 1, 2);
    let (low, high) = u.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
    assert!((-0.25..-0.249).contains(&low) && (0.249..=0.25).contains(&high));
    let mean = u.iter().sum::<f32>() / 1e5;
    assert!(mean.abs() < 0.002, "{mean}");
    assert_ne!(normal(8, 1, 2), normal(8, 1, 3));
    assert_ne!(normal(8, 1, 2), normal(8, 2, 2));
}

#[test]
fn rms_norm_is_its_formula() {
    let (x, w) = (wave(&[3, 4, 8], Kind::Double) * 5., wave(&[8], Kind::Double));
    let norm = RmsNorm { weight: w.shallow_clone(), eps: 1e-3 };
    let (y, rows) = (norm.forward(&x).unwrap().view([-1, 8]), x.view([-1, 8]));
    for i in 0..12 {
        let row: Vec<f64> = rows.get(i).try_into().unwrap();
        let mean = row.iter().map(|v| v * v).sum::<f64>() / 8.;
        for (j, v) in row.iter().enumerate() {
            let expected = v / (mean + 1e-3).sqrt() * w.double_value(&[j as i64]);
            let found = y.double_value(&[i, j as i64]);
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
    // In bf16 the mean is taken in f32: large activations do not overflow or coarsen.
    let big = (Tensor::ones([1, 512], F32) * 300.).to_kind(Kind::BFloat16);
    let norm = RmsNorm { weight: big.ones_like().get(0), eps: 1e-6 };
    let y = norm.forward(&big).unwrap();
    assert_eq!(y.kind(), Kind::BFloat16);
    assert_eq!(y.double_value(&[0, 511]), 1.);
}

#[test]
fn gradients_written_by_hand_are_exact() {
    let leaf = |shape: &[i64]| {
        (wave(shape, Kind::Double) * 2. + 0.1).set_requires_grad(true)
    };
    let norm = |x: &[Tensor]| {
        let [x, weight] = x else { unreachable!() };
        RmsNorm { weight: weight.shallow_clone(), eps: 1e-3 }.forward(x)
    };
    gradcheck(norm, &[leaf(&[2, 3, 6]), leaf(&[6])], 1e-6, 1e-8, 1e-7).unwrap();
    let frozen = [leaf(&[2, 3, 6]), leaf(&[6]).detach()];
    gradcheck(norm, &frozen, 1e-6, 1e-8, 1e-7).unwrap();
    let rotation = rope(RopeScaling::Default).rotation(
        &[0, 1, 7],
        8,
        Kind::Double,
        Device::Cpu,
    );
    let rows = Rows::new(&[2, 4, 1], Device::Cpu);
    let grid = |x: &[Tensor]| rows.grid(&x[0]);
    gradcheck(grid, &[leaf(&[7, 2, 3])], 1e-6, 1e-8, 1e-7).unwrap();
    let line = |x: &[Tensor]| rows.line(&x[0]);
    gradcheck(line, &[leaf(&[3, 4, 2, 3])], 1e-6, 1e-8, 1e-7).unwrap();
    let adapted = |x: &[Tensor]| {
        let [x, w, a, b] = x else { unreachable!() };
        let (a, b) = (a.shallow_clone(), b.shallow_clone());
        let mut linear = Linear::dense(w.shallow_clone(), None);
        linear.lora =
            Some(Adapter { dropout: 0.3, place: 1, ..Adapter::new(a, b, 1.5) });
        linear.forward(x, train(1))
    };
    let mut inputs = [leaf(&[2, 3, 6]), leaf(&[4, 6]), leaf(&[2, 6]), leaf(&[4, 2])];
    gradcheck(adapted, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    inputs[1] = inputs[1].detach(); // a frozen base
    gradcheck(adapted, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    inputs[0] = inputs[0].detach(); // as in the first layer of a frozen model
    gradcheck(adapted, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    let targets = Tensor::from_slice(&[4i64, 0, 4]);
    let loss = |x: &[Tensor]| cross_entropy(&x[0], &x[1], &targets);
    let mut inputs = [leaf(&[3, 6]), leaf(&[5, 6])];
    gradcheck(loss, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    inputs[1] = inputs[1].detach();
    gradcheck(loss, &inputs, 1e-6, 1e-8, 1e-7).unwrap();
    let turn = |x: &[Tensor]| rotation.apply(&x[0]);
    gradcheck(turn, &[leaf(&[3, 4, 8])], 1e-6, 1e-8, 1e-7).unwrap();
}

fn rope(scaling: RopeScaling) -> Rope {
    Rope { theta: 10_000., scaling }
}

#[test]
fn rope_turns_pairs_by_their_angle() {
    let (k, t) = (8, 5);
    let rope = rope(RopeScaling::Default);
    let positions: Vec<i64> = (3..3 + t).collect();
    let rotation = rope.rotation(&positions, k, Kind::Float, Device::Cpu);
    let x = wave(&[t, 6, k], Kind::Float);
    let y = rotation.apply(&x).unwrap();
    for p in 0..t {
        for i in 0..k / 2 {
            let omega = 10_000f64.powf(-2. * i as f64 / k as f64);
            let (sin, cos) = ((p + 3) as f64 * omega).sin_cos();
            let at = |t: &Tensor, j| t.double_value(&[p, 2, j]);
            let (a, b) = (at(&x, i), at(&x, i + k / 2));
            let expected = (a * cos - b * sin, b * cos + a * sin);
            let found = (at(&y, i), at(&y, i + k / 2));
            assert!((found.0 - expected.0).abs() < 1e-6, "{found:?} {expected:?}");
            assert!((found.1 - expected.1).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }
    // What attention sees depends on distances alone.
    let dot = |m: i64, n: i64| {
        let at = |p: i64, x: &Tensor| {
            rope.rotation(&[p], k, Kind::Float, Device::Cpu).apply(x).unwrap()
        };
        let (q, v) =
            (wave(&[1, 1, k], Kind::Float), wave(&[1, 1, k], Kind::Float).flip([2]));
        (at(m, &q) * at(n, &v)).sum(Kind::Double).double_value(&[])
    };
    assert!((dot(7, 3) - dot(47, 43)).abs() < 1e-5);
    assert!((dot(7, 3) - dot(8, 3)).abs() > 1e-3);
}

#[test]
fn rope_scalings() {
    let plain = rope(RopeScaling::Default).frequencies(64, 0);
    let linear = rope(RopeScaling::Linear { factor: 4. }).frequencies(64, 0);
    assert!(plain.iter().zip(&linear).all(|(a, b)| a / 4. == *b));
    let llama3 = rope(RopeScaling::Llama3 {
        factor: 8.,
        low_freq_factor: 1.,
        high_freq_factor: 4.,
        original_max_position_embeddings: 8192,
    })
    .frequencies(64, 0);
    let mut between = 0;
    for (a, b) in plain.iter().zip(&llama3) {
        let turns = 8192. * f64::from(*a) / std::f64::consts::TAU;
        match turns {
            t if t >= 4. => assert_eq!(a, b),
            t if t <= 1. => assert!((a / 8. - b).abs() < 1e-6 * a),
            _ => {
                assert!(a / 8. < *b && b < a);
                between += 1;
            }
        }
    }
    assert!(between > 0);
    assert!(llama3.is_sorted_by(|a, b| a > b));
}

fn dense(out: i64, input: i64) -> Linear {
    Linear::dense(wave(&[out, input], Kind::Float), None)
}

fn copied(l: &Linear) -> Linear {
    match &l.weight {
        Weight::Dense(w) => Linear::dense(w.shallow_clone(), None),
        Weight::Nf4(_) => unreachable!(),
    }
}

/// Softmax attention in loops: each query sees what came before it in its row, whether
/// the rows are of one length or not.
#[test]
fn grouped_query_attention_is_its_formula() {
    let (d, h, g, k, n) = (12, 4, 2, 6, 10);
    let parts = [dense(h * k, d), dense(g * k, d), dense(g * k, d), dense(d, h * k)];
    let [q_proj, k_proj, v_proj, o_proj] = parts.each_ref().map(copied);
    let mut attention = Attention::Gqa(Gqa {
        q: q_proj,
        k: k_proj,
        v: v_proj,
        o: o_proj,
        norms: None,
        head_dim: k,
        dropping: Dropping { p: 0., place: 0 },
    });
    let x = wave(&[n, d], Kind::Float);
    let rows = [[5, 5].as_slice(), &[3, 6, 1], &[10]];
    // The second probability is too small to drop anything, but takes the other way.
    for (lengths, p) in rows.iter().flat_map(|l| [(*l, 0.), (*l, 1e-9)]) {
        attention.set_dropout(p);
        let rows = Rows::new(lengths, Device::Cpu);
        let positions = rows.positions(0);
        let rope = rope(RopeScaling::Default);
        let rotation = rope.rotation(&positions, k, Kind::Float, Device::Cpu);
        let y = attention.forward(&x, &rows, &rotation, None, train(0)).unwrap();

        let heads = |l: &Linear, heads: i64| {
            l.forward(&x, Mode::Eval).unwrap().view([n, heads, k])
        };
        let q = rotation.apply(&heads(&parts[0], h)).unwrap();
        let key = rotation.apply(&heads(&parts[1], g)).unwrap();
        let v = heads(&parts[2], g);
        let mut rows = Vec::new();
        let mut first = 0;
        for t in lengths {
            for i in 0..*t {
                let mut row = Vec::new();
                for head in 0..h {
                    let group = head / (h / g);
                    let q = q.get(first + i).get(head);
                    let past =
                        |x: &Tensor| x.select(1, group).narrow(0, first, i + 1);
                    let scores = past(&key).matmul(&q) / (k as f64).sqrt();
                    row.push(scores.softmax(0, Kind::Float).matmul(&past(&v)));
                }
                rows.push(Tensor::cat(&row, 0));
            }
            first += t;
        }
        let expected =
            parts[3].forward(&Tensor::stack(&rows, 0), Mode::Eval).unwrap();
        let far = gap(&y, &expected);
        assert!(far < 1e-5, "{lengths:?}: {far:e}");
    }
}

/// Rows end to end compute and learn what each computes alone.
#[test]
fn rows_end_to_end_do_not_see_each_other() {
    let model = Decoder::random(config(), 5).unwrap();
    let lengths = [4, 1, 7];
    let ids = ids(1, lengths.iter().sum()).view([-1]);
    let all = model.hidden_rows(&ids, &lengths, Mode::Eval, &mut |_, _| ()).unwrap();
    let grad = |y: &Tensor| {
        let weights = model.named_parameters();
        let stack = weights.iter().filter(|(name, _)| name != "lm_head.weight");
        let weights: Vec<&Tensor> = stack.map(|(_, w)| w).collect();
        let dy = y.detach().cos();
        vjp(y, &dy, &weights).unwrap()
    };
    let mut sum: Vec<Tensor> = vec![];
    for (row, ids) in
        all.split_with_sizes(lengths, 0).iter().zip(ids.split_with_sizes(lengths, 0))
    {
        let alone = model
            .hidden(&ids.unsqueeze(0), Mode::Eval, None)
            .unwrap()
            .squeeze_dim(0);
        assert!(gap(row, &alone) < 1e-5);
        let grads = grad(&alone).into_iter().map(Option::unwrap);
        sum = match sum.is_empty() {
            true => grads.collect(),
            false => grads.zip(sum).map(|(a, b)| a + b).collect(),
        };
    }
    for (joint, sum) in grad(&all).into_iter().zip(sum) {
        let joint = joint.unwrap();
        assert!(
            gap(&joint, &sum) < 1e-5 * joint.abs().max().double_value(&[]).max(1.)
        );
    }
}

/// Against libtorch's, with a vocabulary so large that the tokens go in two parts. In
/// f64: sums over two million scores differ by their order otherwise.
#[test]
fn cross_entropy_in_parts_is_libtorchs() {
    let (tokens, vocabulary) = (9, 1 << 21);
    let w = wave(&[vocabulary, 2], Kind::Double).set_requires_grad(true);
    let h = (wave(&[tokens, 2], Kind::Double) * 9.).set_requires_grad(true);
    let targets = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * 200_000;
    let ours = cross_entropy(&h, &w, &targets).unwrap();
    (&ours * 0.5).backward();
    let found = [&h, &w].map(|t| t.grad().copy());
    let (mut h, mut w) = (h, w);
    h.zero_grad();
    w.zero_grad();
    let (none, sum) = (None::<Tensor>, tch::Reduction::Sum);
    let loss = h.linear(&w, none.as_ref());
    let loss = loss.cross_entropy_loss(&targets, none, sum, -100, 0.);
    (&loss * 0.5).backward();
    assert!(gap(&ours.detach(), &loss.detach()) < 1e-12);
    for (found, t) in found.iter().zip([&h, &w]) {
        let far = gap(found, &t.grad());
        assert!(far < 1e-9, "{far:e}");
    }
    let alone = tch::no_grad(|| cross_entropy(&h, &w, &targets).unwrap());
    assert!(same_bits(&alone, &ours.detach()) && !alone.requires_grad());
    assert!(cross_entropy(&h, &w, &targets.narrow(0, 1, 3)).is_err());
}

#[test]
fn swiglu_is_its_formula() {
    let mlp = SwiGlu { gate: dense(10, 6), up: dense(10, 6), down: dense(6, 10) };
    let x = wave(&[3, 6], Kind::Float);
    let y = mlp.forward(&x, Mode::Eval).unwrap();
    let part = |l: &Linear, x: &Tensor| match &l.weight {
        Weight::Dense(w) => x.matmul(&w.tr()),
        Weight::Nf4(_) => unreachable!(),
    };
    let gate = part(&mlp.gate, &x);
    let silu = &gate / ((-&gate).exp() + 1.);
    let expected = part(&mlp.down, &(silu * part(&mlp.up, &x)));
    assert!(gap(&y, &expected) < 1e-6);
}

#[test]
fn a_linear_adds_its_adapter() {
    let (a, b) = (wave(&[2, 6], Kind::Float), wave(&[4, 2], Kind::Float));
    let (w, bias) = (wave(&[4, 6], Kind::Float), wave(&[4], Kind::Float));
    let mut linear = Linear::dense(w.shallow_clone(), Some(bias.shallow_clone()));
    let x = wave(&[2, 3, 6], Kind::Float);
    let base = x.matmul(&w.tr()) + &bias;
    assert!(gap(&linear.forward(&x, Mode::Eval).unwrap(), &base) < 1e-6);
    let (la, lb) = (a.shallow_clone(), b.shallow_clone());
    linear.lora =
        Some(Adapter { dropout: 0.4, place: 3, ..Adapter::new(la, lb, 0.5) });
    let update = |x: &Tensor| x.matmul(&a.tr()).matmul(&b.tr()) * 0.5;
    let y = linear.forward(&x, Mode::Eval).unwrap();
    assert!(gap(&y, &(&base + update(&x))) < 1e-6);
    // Dropout touches what the adapter sees, and never the base.
    let y = linear.forward(&x, train(1)).unwrap();
    let dropped = dropout(&x, 0.4, train(1), 3);
    assert!(gap(&y, &(&base + update(&dropped))) < 1e-6);
}

#[test]
fn the_4_bit_linear_is_exact_beside_its_dequantized_twin() {
    let w = wave(&[20, 24], Kind::Float);
    for double in [false, true] {
        let q = Nf4Tensor::quantize(&w, 64, double).unwrap();
        let twin = Linear::dense(q.dequantize(Kind::Float), None);
        let nf4 = Linear { weight: Weight::Nf4(q), bias: None, lora: None };
        let run = |l: &Linear| {
            let x = wave(&[3, 5, 24], Kind::Float).set_requires_grad(true);
            let y = l.forward(&x, Mode::Eval).unwrap();
            (&y * &y).sum(Kind::Float).backward();
            (y.detach(), x.grad())
        };
        let ((y, dx), (expected, expected_dx)) = (run(&nf4), run(&twin));
        assert!(gap(&y, &expected) < 1e-6 && gap(&dx, &expected_dx) < 1e-6);
    }
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_text() {
    let model = frozen(3);
    let ids = ids(2, 12);
    let whole = logits(&model, &ids);
    // One at a time, in uneven pieces, and a prompt first.
    for pieces in [vec![1; 12], vec![5, 1, 1, 3, 2], vec![11, 1], vec![12]] {
        let (mut cache, mut start, mut parts) = (model.cache(), 0, Vec::new());
        assert!(cache.is_empty());
        for n in pieces {
            let part = ids.narrow(1, start, n);
            let hidden = model.hidden(&part, Mode::Eval, Some(&mut cache)).unwrap();
            parts.push(model.logits(&hidden).unwrap());
            start += n;
            assert_eq!(cache.len(), start);
        }
        let far = gap(&Tensor::cat(&parts, 1), &whole);
        assert!(far < 1e-5, "{far:e}");
    }
}

fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    tch::no_grad(|| {
        model.logits(&model.hidden(ids, Mode::Eval, None).unwrap()).unwrap()
    })
}

#[test]
fn padding_on_the_right_changes_no_real_token() {
    let model = frozen(4);
    let real = ids(1, 9);
    let alone = logits(&model, &real);
    for pad in [0, 17, 60] {
        let padding = Tensor::full([1, 7], pad, (Kind::Int64, Device::Cpu));
        let padded = logits(&model, &Tensor::cat(&[&real, &padding], 1));
        let far = gap(&padded.narrow(1, 0, 9), &alone);
        assert!(far < 1e-6, "{far:e}");
    }
    // In a batch beside a longer row as well.
    let longer = ids(1, 16) + 1;
    let padding = Tensor::zeros([1, 7], (Kind::Int64, Device::Cpu));
    let short = Tensor::cat(&[&real, &padding], 1);
    let both = logits(&model, &Tensor::cat(&[short, longer.remainder(61)], 0));
    let far = gap(&both.narrow(0, 0, 1).narrow(1, 0, 9), &alone);
    assert!(far < 1e-6, "{far:e}");
}

#[test]
fn a_token_sees_nothing_after_it() {
    let model = frozen(5);
    let (a, b) = (ids(1, 10), ids(1, 10));
    let _ = b.get(0).get(6).fill_(1);
    let (a, b) = (logits(&model, &a), logits(&model, &b));
    assert!(gap(&a.narrow(1, 0, 6), &b.narrow(1, 0, 6)) < 1e-7);
    assert!(gap(&a.narrow(1, 6, 4), &b.narrow(1, 6, 4)) > 1e-3);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let c = DecoderConfig { tie_word_embeddings: true, ..config() };
    let model = Decoder::random(c, 1).unwrap();
    let named = model.named_parameters();
    assert!(named.iter().all(|(name, _)| name != "lm_head.weight"));
    let hidden = wave(&[1, 2, 32], Kind::Float);
    let expected = hidden.matmul(&named[0].1.tr());
    assert!(gap(&model.logits(&hidden).unwrap(), &expected) < 1e-6);
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let model = frozen(1);
    for bad in [-1i64, 61, 1 << 40] {
        let ids = Tensor::from_slice(&[1, bad, 2]).view([1, 3]);
        assert!(model.hidden(&ids, Mode::Eval, None).is_err(), "{bad}");
    }
}

/// Layers of every sort in `kind`, with a dropout of `p` in the adapter: dense, dense
/// with a bias, in 4 bits.
fn layers(kind: Kind, p: f64) -> Vec<Linear> {
    let w = wave(&[20, 24], Kind::Float) - 0.5;
    let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
    let bias = || wave(&[20], kind);
    let lora = || {
        let [a, b] = [[4, 24], [20, 4]].map(|s| wave(&s, Kind::Float) - 0.3);
        let [a, b] = [a, b].map(|t| t.set_requires_grad(true));
        Some(Adapter { dropout: p, place: 5, ..Adapter::new(a, b, 1.5) })
    };
    let dense = || Weight::Dense(w.to_kind(kind));
    vec![
        Linear { weight: dense(), bias: None, lora: lora() },
        Linear { weight: dense(), bias: Some(bias()), lora: lora() },
        Linear { weight: Weight::Nf4(q.shallow_clone()), bias: None, lora: lora() },
        Linear { weight: Weight::Nf4(q), bias: Some(bias()), lora: lora() },
    ]
}

/// y, and the gradients of x, A and B for a fixed dL/dy.
fn passed(layer: &Linear, x: &Tensor, need: Need) -> Vec<Tensor> {
    let y = layer.forward_for(need, x, train(2)).unwrap();
    let dy = (wave(&[2, 7, 20], Kind::Float) - 0.4).to_kind(x.kind());
    let lora = layer.lora.as_ref().unwrap();
    let inputs = [&[x][..], &lora.tensors()].concat();
    let grads = vjp(&y, &dy, &inputs).unwrap().into_iter();
    std::iter::once(y.detach())
        .chain(grads.map(|g| g.expect("a gradient")))
        .collect()
}

/// The base in 16 bits, the adapter kept in 32, as PEFT has it: what comes out, and
/// every gradient, is what f64 makes of the same numbers, but for some roundings.
#[test]
fn in_16_bits_a_layer_and_its_gradients_are_right_but_for_rounding() {
    let bf16 = Kind::BFloat16;
    let x = (wave(&[2, 7, 24], Kind::Float) - 0.5).to_kind(bf16);
    let x = x.set_requires_grad(true);
    let exact = |t: &Tensor| {
        let t = t.detach().to_kind(bf16).to_kind(Kind::Double);
        t.set_requires_grad(true)
    };
    for p in [0., 0.3] {
        for layer in layers(bf16, p) {
            let found = passed(&layer, &x, Need::Value);
            let kinds: Vec<_> = found.iter().map(Tensor::kind).collect();
            assert_eq!(kinds, [bf16, bf16, Kind::Float, Kind::Float]);
            let w = match &layer.weight {
                Weight::Dense(w) => w.to_kind(Kind::Double),
                Weight::Nf4(q) => q.dequantize(bf16).to_kind(Kind::Double),
            };
            let lora = layer.lora.as_ref().unwrap();
            let adapter = Adapter {
                dropout: p,
                place: 5,
                ..Adapter::new(exact(&lora.a), exact(&lora.b), 1.5)
            };
            let bias = layer.bias.as_ref().map(|b| b.to_kind(Kind::Double));
            let twin =
                Linear { weight: Weight::Dense(w), bias, lora: Some(adapter) };
            let expected = passed(&twin, &exact(&x), Need::Value);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let far = gap(found, expected);
                assert!(far < 2f64.powi(-7), "{p} {:?} {i}: {far:e}", layer.weight);
            }
            // Rounded at all: the twin would find an f32 layer much closer.
            assert!(gap(&found[0], &expected[0]) > 1e-4);
        }
    }
}

#[test]
fn the_graph_alone_has_the_same_gradients() {
    let dora = |mut layer: Linear| {
        let lora = layer.lora.as_mut().unwrap();
        lora.dora = Some(Dora::new(&layer.weight, lora).unwrap());
        layer
    };
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = (wave(&[2, 7, 24], Kind::Float) - 0.5).to_kind(kind);
        let x = x.set_requires_grad(true);
        for p in [0., 0.3] {
            let plain = layers(kind, p).into_iter().map(|l| (l, true));
            let all =
                plain.chain(layers(kind, p).into_iter().map(|l| (dora(l), false)));
            for (layer, spared) in all {
                let [value, graph] =
                    [Need::Value, Need::Graph].map(|need| passed(&layer, &x, need));
                assert_eq!(value[0].size(), graph[0].size());
                let absent = graph[0].abs().max().double_value(&[]) == 0.;
                assert_eq!(absent, spared, "the product of {:?}", layer.weight);
                for (a, b) in value.iter().zip(&graph).skip(1) {
                    assert!(same_bits(a, b), "{kind:?} {p} {:?}", layer.weight);
                }
            }
        }
    }
    // Without an adapter, and with a base that learns.
    let x = wave(&[2, 7, 24], Kind::Float).set_requires_grad(true);
    for learns in [false, true] {
        let w = wave(&[20, 24], Kind::Float).set_requires_grad(learns);
        let layer = Linear::dense(w.shallow_clone(), None);
        let dy = wave(&[2, 7, 20], Kind::Float);
        let [value, graph] = [Need::Value, Need::Graph].map(|need| {
            let y = layer.forward_for(need, &x, Mode::Eval).unwrap();
            let inputs = if learns { vec![&x, &w] } else { vec![&x] };
            vjp(&y, &dy, &inputs).unwrap()
        });
        for (a, b) in value.iter().zip(&graph) {
            assert!(same_bits(a.as_ref().unwrap(), b.as_ref().unwrap()));
        }
    }
}

#[test]
fn on_cuda_the_same_numbers() {
    let Some(device) = cuda() else { return };
    // Masks come from the host: the same elements fall on every device.
    let x = Tensor::ones([5000], F32);
    let y = dropout(&x.to_device(device), 0.3, train(2), 1);
    assert!(same_bits(&dropout(&x, 0.3, train(2), 1), &y.to_device(Device::Cpu)));

    let q = Nf4Tensor::quantize(&wave(&[64, 96], Kind::Float), 64, true).unwrap();
    let run = |device: Device| {
        let q = q.to_device(device);
        let linear = Linear { weight: Weight::Nf4(q), bias: None, lora: None };
        let x =
            wave(&[7, 96], Kind::Float).to_device(device).set_requires_grad(true);
        let y = linear.forward(&x, Mode::Eval).unwrap();
        (&y * &y).sum(Kind::Float).backward();
        [y.detach(), x.grad()].map(|t| t.to_device(Device::Cpu))
    };
    for (here, there) in run(Device::Cpu).iter().zip(&run(device)) {
        assert!(gap(there, here) < 1e-3);
    }
}
