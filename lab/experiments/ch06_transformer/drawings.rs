//! The drawings of chapter 6: what each part does, on numbers small enough to follow.
use super::reader;
use downhill::Result;
use downhill::plot::{Align::*, Chart, Figure, Sketch};
use downhill_lab::Report;
use tch::{Kind, Tensor};

const GREY: usize = 6;
/// Of frames and grids.
const PALE: usize = 99;

/// Draws all of them, and reports the numbers of the worked example.
pub fn all(report: &mut Report) -> Result<()> {
    report.figure("", &blocks())?;
    report.figure("embed", &embed())?;
    let attend = attend(report);
    report.figure("attend", &attend)?;
    report.figure("norm", &norm()?)?;
    report.figure("swiglu", &swiglu()?)?;
    report.figure("rotate", &rotate()?)?;
    report.figure("loss", &loss()?)
}

/// The whole model, from letters at the bottom to a prediction at the top.
fn blocks() -> Figure {
    let stream = 120.;
    let mut s = Sketch::new(494, 700);
    s = s.text((stream, 680.), 15, Middle, "letters: A l i c e");
    s = s.line(&[(stream, 668.), (stream, 636.)], GREY, true);
    s = s.block([40., 598., 160., 38.], 3, "embedding");
    s = s.text((215., 617.), 14, Left, "a vector of D numbers each");
    s = s.line(&[(stream, 598.), (stream, 196.)], 0, true);
    s = s.text((132., 577.), 14, Left, "residual stream");
    for (low, name, note, colour) in [
        (540., "attention", "looks at places before", 1),
        (400., "SwiGLU", "each place by itself", 2),
    ] {
        s = s.line(&[(stream, low), (196., low)], GREY, true);
        s = s.block([196., low - 19., 76., 38.], GREY, "norm");
        s = s.line(&[(272., low), (312., low)], GREY, true);
        s = s.block([312., low - 19., 150., 38.], colour, name);
        s = s.text((387., low + 32.), 13, Middle, note);
        let (up, end) = (low - 66., stream + 12.);
        s = s.line(&[(387., low - 19.), (387., up), (end, up)], GREY, true);
        s = s.block([stream - 11., up - 11., 22., 22.], 0, "+");
    }
    let frame = [(62., 590.), (484., 590.), (484., 306.), (62., 306.), (62., 590.)];
    s = s.line(&frame, PALE, false);
    s = s.text((476., 322.), 14, Right, "one layer; there are several");
    s = s.block([82., 158., 76., 38.], GREY, "norm");
    s = s.line(&[(stream, 158.), (stream, 134.)], GREY, true);
    s = s.block([40., 96., 160., 38.], 3, "head");
    s = s.text((215., 115.), 14, Left, "a score per letter: logits");
    s = s.line(&[(stream, 96.), (stream, 72.)], GREY, true);
    s = s.block([40., 34., 160., 38.], 4, "softmax");
    s = s.text((215., 53.), 14, Left, "a probability per letter to come");
    s.text((260., 14.), 16, Middle, "From letters to the next letter").draw()
}

/// Rows of a table picked by number, and the same kind of table multiplied at the end.
fn embed() -> Figure {
    let letters = ["a", "b", "c", "d", "e"];
    let shade =
        |i: usize, j: usize| f64::from((7 * i + 5 * j * j + 3) as u32 % 9) / 10.;
    let mut s = Sketch::new(340, 450);
    s = s.text((170., 20.), 16, Middle, "Embedding: pick a row");
    s = s.text((170., 236.), 16, Middle, "Head: compare with every row");
    for (i, letter) in letters.iter().enumerate() {
        let y = 40. + 30. * i as f64;
        s = s.text((40., y + 14.), 15, Middle, letter);
        s = s.text((40., y + 230.), 15, Middle, letter);
        for j in 0..4 {
            let x = 60. + 28. * j as f64;
            s = s.cell([x, y, 28.], 3, shade(i, j), "");
            s = s.cell([x, y + 216., 28.], 3, shade(i + 2, j), "");
        }
        s = s.line(&[(180., y + 230.), (206., y + 230.)], GREY, true);
        let score = ["2.1", "−0.4", "0.3", "−1.2", "0.9"][i];
        s = s.text((232., y + 230.), 15, Middle, score);
    }
    s = s.line(&[(180., 114.), (206., 114.)], GREY, true);
    for j in 0..4 {
        s = s.cell([214. + 24. * j as f64, 102., 24.], 3, shade(2, j), "");
    }
    s = s.text((262., 84.), 14, Middle, "letter c");
    s = s.text((116., 206.), 14, Middle, "V rows of D numbers");
    s.text((170., 430.), 14, Middle, "each score is a product of two vectors").draw()
}

/// The worked example: three letters, queries, keys and values of two numbers.
fn attend(report: &mut Report) -> Figure {
    let rows = |all: [[f64; 2]; 3]| Tensor::from_slice2(&all).view([1, 1, 3, 2]);
    let q = rows([[1., 0.], [0., 1.], [1., 1.]]);
    let k = rows([[1., 0.], [0., 1.], [1., 1.]]);
    let v = rows([[1., 0.], [0., 2.], [4., 4.]]);
    let scores = q.matmul(&k.transpose(2, 3)) / 2f64.sqrt();
    let p = reader::look(&q, &k);
    let y = p.matmul(&v);
    let at = |t: &Tensor, i: i64, j: i64| t.double_value(&[0, 0, i, j]);
    let mut s = Sketch::new(420, 480);
    let side = 50.;
    let names =
        [(85., 20., "scores"), (335., 20., "weights"), (85., 246., "values")];
    for (x, y, name) in names.into_iter().chain([(335., 246., "result")]) {
        s = s.text((x, y), 16, Middle, name);
    }
    for i in 0..3 {
        let top = 40. + side * i as f64;
        for j in 0..3 {
            let x = 10. + side * j as f64;
            let (score, weight) = (at(&scores, i, j), at(&p, i, j));
            report.number(&format!("worked.score.t{i}.s{j}"), score);
            report.number(&format!("worked.p.t{i}.s{j}"), weight);
            let (a, b) = match j > i {
                true => ("–".to_string(), "0".to_string()),
                false => (format!("{score:.2}"), format!("{weight:.2}")),
            };
            s = s.cell([x, top, side], 0, 0., &a);
            s = s.cell([x + 250., top, side], 1, weight, &b);
        }
        for j in 0..2 {
            let x = 35. + side * j as f64;
            let (value, result) = (at(&v, i, j), at(&y, i, j));
            report.number(&format!("worked.y.t{i}.d{j}"), result);
            s = s.cell([x, top + 226., side], 3, 0.15, &format!("{value}"));
            s = s.cell(
                [x + 250., top + 226., side],
                2,
                0.15,
                &format!("{result:.2}"),
            );
        }
    }
    s = s.line(&[(172., 115.), (250., 115.)], GREY, true);
    s = s.text((211., 98.), 14, Middle, "softmax");
    s = s.line(&[(152., 341.), (270., 341.)], GREY, true);
    s = s.text((211., 324.), 14, Middle, "weights × values");
    s = s.text((85., 206.), 14, Middle, "row: who asks");
    s = s.text((335., 206.), 14, Middle, "each row sums to 1");
    s.text((210., 452.), 14, Middle, "no place takes anything from a later one")
        .draw()
}

/// Points of the plane before and after the norm.
fn norm() -> Result<Figure> {
    let mut chart = Chart::new(
        "The norm keeps the direction and drops the length",
        "first number",
        "second number",
    );
    let circle =
        (0..=100).map(|i| (f64::from(i) * std::f64::consts::TAU / 100.).sin_cos());
    let root = 2f64.sqrt();
    chart = chart.faint(circle.map(|(s, c)| (root * c, root * s)).collect());
    let before = [(2.6, 0.7), (0.3, 0.5), (-1.7, 1.9), (-0.6, -0.2), (1.2, -2.2)];
    let mut after = vec![];
    for (a, b) in before {
        let y = reader::norm(
            &Tensor::from_slice(&[a, b]),
            &Tensor::ones([2], (Kind::Double, tch::Device::Cpu)),
        );
        let y = (y.double_value(&[0]), y.double_value(&[1]));
        assert!(
            (y.0.hypot(y.1) - root).abs() < 1e-4 && (a * y.1 - b * y.0).abs() < 1e-9
        );
        chart = chart.faint(vec![(a, b), y]);
        after.push(y);
    }
    let chart = chart.points("before", before.to_vec()).points("after", after);
    chart.x_range(-5.4, 5.4).y_range(-2.8, 2.8).draw()
}

/// SiLU beside what it is made of.
fn swiglu() -> Result<Figure> {
    let at = |f: fn(f64) -> f64| -> Vec<(f64, f64)> {
        (-60..=40).map(|i| (f64::from(i) / 10., f(f64::from(i) / 10.))).collect()
    };
    let sigmoid = |x: f64| 1. / (1. + (-x).exp());
    let silu = at(|x| x / (1. + (-x).exp()));
    let chart = Chart::new("SiLU: a gate that opens slowly", "x", "")
        .line("SiLU", silu)
        .line(
            "sigmoid",
            (-60..=40)
                .map(|i| (f64::from(i) / 10., sigmoid(f64::from(i) / 10.)))
                .collect(),
        )
        .dashed("ReLU", at(|x| x.max(0.)));
    chart.at_ends().draw()
}

/// The product of a turned query and a turned key, by how far apart they stand.
fn rotate() -> Result<Figure> {
    let (k, long) = (16, 120);
    let z = downhill::nn::dropout::normal(2 * k as usize, 3, 0);
    let same = |part: i64| {
        let one =
            Tensor::from_slice(&z).to_kind(Kind::Double).view([2, k]).get(part);
        reader::rotate(&one.repeat([1, 1, long, 1])).get(0).get(0) // at every place
    };
    let (q, key) = (same(0), same(1));
    let score = |m: i64, n: i64| q.get(m).dot(&key.get(n)).double_value(&[]);
    let mut chart = Chart::new(
        "The score of two turned vectors knows only their distance",
        "distance",
        "q · k",
    );
    let line =
        |m: i64| (0..=40).map(|d| (d as f64, score(m, m - d))).collect::<Vec<_>>();
    let (near, far) = (line(40), line(119));
    for (a, b) in near.iter().zip(&far) {
        assert!((a.1 - b.1).abs() < 1e-9, "{a:?} {b:?}");
    }
    chart = chart.line("query at place 40", near).points("query at place 119", far);
    chart.y_range(-3., 11.).draw()
}

/// The loss of a prediction, and the gradient of its score.
fn loss() -> Result<Figure> {
    let p = || (1..=100).map(|i| f64::from(i) / 100.);
    Chart::new("A surprise costs, and pushes", "p of the letter that came", "nats")
        .line("-ln p", p().map(|p| (p, -p.ln())).collect())
        .line("p - 1", p().map(|p| (p, p - 1.)).collect())
        .at_ends()
        .draw()
}

/// What each head of each layer looks at, for a sentence: rows ask, columns are seen.
pub fn maps(sentence: &str, seen: &[Tensor]) -> Figure {
    let letters = sentence.chars().count();
    let n = letters as f64;
    let side = 10.4;
    let (heads, width) = (seen[0].size()[0], side * n + 18.);
    let rows = seen.len() as i64 * heads / 2;
    let mut s = Sketch::new(
        (2. * width + 30.) as u32,
        (rows as f64 * (width + 22.) + 40.) as u32,
    );
    s = s.text((width + 15., 18.), 16, Middle, "A row asks, a column is looked at");
    for (layer, p) in seen.iter().enumerate() {
        for head in 0..heads {
            let row = layer as i64 * heads / 2 + head / 2;
            let left = 16. + (head % 2) as f64 * width;
            let top = 64. + row as f64 * (width + 22.);
            let name = format!("layer {}, head {}", layer + 1, head + 1);
            s = s.text((left, top - 13.), 15, Left, &name);
            let edge = side * n;
            let corner =
                [(left, top), (left + edge, top + edge), (left, top + edge)];
            s = s.line(&[corner[0], corner[1], corner[2], corner[0]], PALE, false);
            for t in 0..letters {
                for u in 0..=t {
                    let weight = p.double_value(&[head, t as i64, u as i64]);
                    if weight < 0.03 {
                        continue; // too pale to be seen
                    }
                    s = s.cell(
                        [left + side * u as f64, top + side * t as f64, side],
                        0,
                        weight,
                        "",
                    );
                }
            }
        }
    }
    s.draw()
}

/// Held-out losses of some variants, a mark per seed, below each other.
pub fn dots(rows: &[(&str, Vec<f64>)]) -> Figure {
    let all = rows.iter().flat_map(|(_, losses)| losses.iter().copied());
    let low = all.clone().fold(f64::INFINITY, f64::min);
    let high = all.fold(f64::NEG_INFINITY, f64::max);
    let (left, right) = (124., 424.);
    let (low, high) = ((low * 10.).floor() / 10., (high * 10.).ceil() / 10.);
    let x = |loss: f64| left + (loss - low) / (high - low) * (right - left);
    let bottom = 62. + 34. * rows.len() as f64;
    let mut s = Sketch::new(440, bottom as u32 + 60);
    s = s.text(
        (220., 22.),
        16,
        Middle,
        "Each part is worth something, in every seed",
    );
    let step = ((high - low) / 5. * 10.).ceil().max(1.) / 10.;
    for i in 0.. {
        let tick = low + step * f64::from(i);
        if tick > high + 1e-9 {
            break;
        }
        s = s.line(&[(x(tick), 46.), (x(tick), bottom)], PALE, false);
        s = s.text((x(tick), bottom + 16.), 13, Middle, &format!("{tick:.1}"));
    }
    s = s.text((274., bottom + 40.), 14, Middle, "held-out loss (nats)");
    for (i, (name, losses)) in rows.iter().enumerate() {
        let y = 64. + 34. * i as f64;
        s = s.text((left - 12., y), 14, Right, name);
        for loss in losses {
            let colour = if i == 0 { 0 } else { 1 };
            s = s.cell([x(*loss) - 5., y - 5., 10.], colour, 0.7, "");
        }
    }
    s.draw()
}
