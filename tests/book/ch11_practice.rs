//! Chapter 11: tables from CSV files, what is fitted on them, and the FT-Transformer.
use crate::common::refused;
use crate::golden::{floats, gap, gap_of, json, metadata, same_bits, tensors};
use downhill::Result;
use downhill::data::{Column, Encoder, Scale, Table};
use downhill::models::{FtConfig, FtTransformer, Weights};
use downhill::nn::Mode;
use downhill_lab::tables::{Augment, Model, Setting, Task, fit, loss, parts, split};
use serde_json::Value;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// The tensors of one case as a model's weights.
struct Named<'a>(&'a HashMap<String, Tensor>, String);

impl Weights for Named<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = &self.0[&format!("{}.theta.{name}", self.1)];
        assert_eq!(t.size(), shape, "{name}");
        Ok(t.copy().set_requires_grad(true))
    }
}

fn config(c: &Value) -> FtConfig {
    let (int, float) = (
        |key: &str| c[key].as_i64().expect("an integer"),
        |key: &str| c[key].as_f64().expect("a number"),
    );
    let list = c["cat_cardinalities"].as_array().into_iter().flatten();
    FtConfig {
        n_cont_features: int("n_cont_features"),
        cat_cardinalities: list.filter_map(Value::as_i64).collect(),
        d_out: int("d_out"),
        n_blocks: int("n_blocks") as usize,
        d_block: int("d_block"),
        attention_n_heads: int("attention_n_heads"),
        attention_dropout: float("attention_dropout"),
        ffn_d_hidden_multiplier: float("ffn_d_hidden_multiplier"),
        ffn_dropout: float("ffn_dropout"),
        residual_dropout: float("residual_dropout"),
    }
}

fn settings() -> serde_json::Map<String, Value> {
    let text = metadata("ch11_ft_transformer.safetensors");
    let text = text["settings"].as_str().expect("settings");
    serde_json::from_str(text).expect("JSON")
}

fn none(rows: i64, kind: Kind) -> Tensor {
    Tensor::zeros([rows, 0], (kind, Device::Cpu))
}

#[test]
fn outputs_and_gradients_are_those_of_the_reference() {
    let golden = tensors("ch11_ft_transformer.safetensors");
    for (name, c) in settings() {
        let mut from = Named(&golden, name.clone());
        let model = FtTransformer::new(config(&c), &mut from).expect(&name);
        let input = |part: &str, kind| match golden.get(&format!("{name}.{part}")) {
            Some(t) => t.shallow_clone(),
            None => none(7, kind),
        };
        let (x, codes) = (input("x", Kind::Float), input("c", Kind::Int64));
        let y = model.forward(&x, &codes, Mode::Eval).expect(&name);
        let far = gap(&y.detach(), &golden[&format!("{name}.y")]);
        assert!(far < 1e-5, "{name}: {far:e}");
        y.square().mean(Kind::Float).backward();
        let named = model.named_parameters();
        let all = golden.keys().filter(|k| k.starts_with(&format!("{name}.theta.")));
        assert_eq!(named.len(), all.count(), "{name}");
        let decayed = c["decayed"].as_array().expect("names");
        // Relative to the largest gradient: of keys' biases it is rounding alone.
        let scale = named.iter().map(|(k, _)| {
            golden[&format!("{name}.grad.{k}")].abs().max().double_value(&[])
        });
        let scale = scale.fold(0., f64::max);
        for (key, t) in &named {
            let expected = &golden[&format!("{name}.grad.{key}")];
            let far = (t.grad() - expected).abs().max().double_value(&[]);
            assert!(far < 1e-5 * scale, "{name} {key}: {far:e} of {scale:e}");
            let expected = decayed.iter().any(|d| d == key);
            assert_eq!(FtTransformer::decays(key), expected, "{name} {key}");
        }
    }
}

#[test]
fn the_defaults_are_the_references() {
    for (i, c) in
        json("ch11_scale.json")["defaults"].as_array().unwrap().iter().enumerate()
    {
        let ours = FtConfig::of_blocks(i + 1, 3, &[2], 1);
        let mut c = c.clone();
        c["n_cont_features"] = 3.into();
        c["cat_cardinalities"] = vec![2].into();
        c["d_out"] = 1.into();
        assert_eq!(ours, config(&c), "{} blocks", i + 1);
    }
}

#[test]
fn the_start_is_distributed_as_the_references() {
    let model =
        FtTransformer::random(FtConfig::of_blocks(2, 9, &[3, 4], 2), 1).unwrap();
    for (name, t) in model.named_parameters() {
        let largest = t.abs().max().double_value(&[]);
        let (norm, bias) = (name.contains("normalization"), name.ends_with("bias"));
        if norm || bias && name.contains(".W_") {
            assert_eq!(largest, if norm && !bias { 1. } else { 0. }, "{name}");
            continue;
        }
        // Uniform: the largest is near the bound, the variance a third of its square.
        let fan = if name.contains("linear2") { 170. } else { 128. };
        let bound = 1. / f64::sqrt(fan);
        assert!(largest <= bound, "{name}: {largest} > {bound}");
        if t.numel() > 1000 {
            let std = t.std(true).double_value(&[]);
            assert!((std * 3f64.sqrt() / bound - 1.).abs() < 0.05, "{name}: {std}");
        }
    }
    let again =
        FtTransformer::random(FtConfig::of_blocks(2, 9, &[3, 4], 2), 1).unwrap();
    let pairs = model.named_parameters().into_iter().zip(again.named_parameters());
    assert!(pairs.into_iter().all(|((_, a), (_, b))| same_bits(&a, &b)));
}

#[test]
fn dropout_acts_in_training_only_and_repeats() {
    let mut c = FtConfig::of_blocks(2, 4, &[3], 1);
    c.residual_dropout = 0.2;
    let model = FtTransformer::random(c, 3).unwrap();
    let x = Tensor::randn([6, 4], (Kind::Float, Device::Cpu));
    let codes = Tensor::zeros([6, 1], (Kind::Int64, Device::Cpu));
    let y = |mode| model.forward(&x, &codes, mode).unwrap();
    let train = |step| Mode::Train { seed: 1, step };
    assert!(same_bits(&y(Mode::Eval), &y(Mode::Eval)));
    assert!(same_bits(&y(train(1)), &y(train(1))));
    assert!(!same_bits(&y(train(1)), &y(train(2))));
    assert!(!same_bits(&y(train(1)), &y(Mode::Eval)));
}

#[test]
fn settings_that_cannot_be_are_named() {
    let good = FtConfig::of_blocks(2, 4, &[3], 1);
    let bad = |change: &dyn Fn(&mut FtConfig)| {
        let mut c = good.clone();
        change(&mut c);
        FtTransformer::random(c, 0)
    };
    refused(bad(&|c| c.attention_n_heads = 7), &["d_block", "128", "7"]);
    refused(bad(&|c| c.cat_cardinalities = vec![3, 0]), &["cat_cardinalities", "0"]);
    refused(bad(&|c| c.ffn_dropout = 1.), &["dropout", "1"]);
    refused(bad(&|c| c.d_out = 0), &["d_out"]);
    refused(
        bad(&|c| {
            c.n_cont_features = 0;
            c.cat_cardinalities.clear();
        }),
        &["n_cont_features"],
    );
    let model = FtTransformer::random(good, 0).unwrap();
    let (x, codes) =
        (none(2, Kind::Float), Tensor::from_slice(&[3i64, 0]).view([2, 1]));
    assert!(model.forward(&x, &codes, Mode::Eval).is_err());
}

fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn read(text: &str, categories: &[&str]) -> Result<Table> {
    Table::read(written(text).path(), categories)
}

#[test]
fn columns_have_types_and_gaps() {
    let text =
        "age, city ,sex\n3.5,Bath,1\n,\"York, North\",2\nNA,?,1\n-2e1,Bath,\n";
    let table = read(text, &["sex"]).unwrap();
    assert_eq!(
        (table.rows(), table.names()),
        (4, &["age", "city", "sex"].map(String::from)[..])
    );
    let Column::Numbers(age) = table.column("age").unwrap() else { panic!("age") };
    assert_eq!((age[0], age[3]), (3.5, -20.));
    assert!(age[1].is_nan() && age[2].is_nan());
    let strings = |all: &[Option<&str>]| {
        Column::Categories(all.iter().map(|s| s.map(String::from)).collect())
    };
    let city = [Some("Bath"), Some("York, North"), None, Some("Bath")];
    assert_eq!(*table.column("city").unwrap(), strings(&city));
    let sex = [Some("1"), Some("2"), Some("1"), None];
    assert_eq!(*table.column("sex").unwrap(), strings(&sex));
    // A mark of the byte order, quotes in quotes, a line break inside a cell.
    let table = read("\u{feff}\"a\",b\n+1,\"say \"\"hi\"\"\"\n.5,\"x\ny\"\n", &[]);
    let table = table.unwrap();
    assert_eq!(table.numbers("a").unwrap(), [1., 0.5]);
    assert_eq!(
        *table.column("b").unwrap(),
        strings(&[Some("say \"hi\""), Some("x\ny")])
    );
    // However it is written that nothing is there, first or later.
    let table = read("a\nN/A\n1\nNone\nNAN\n#N/A\nNULL\n2\n", &[]).unwrap();
    let Column::Numbers(a) = table.column("a").unwrap() else { panic!("a") };
    assert_eq!((a[1], a[6]), (1., 2.));
    assert_eq!(a.iter().filter(|x| x.is_nan()).count(), 5);
    // Line ends of Windows, a last line without one.
    let table = read("a,b\r\n1,x\r\n2,y", &[]).unwrap();
    assert_eq!(table.numbers("a").unwrap(), [1., 2.]);
    let (levels, codes) = table.classes("b").unwrap();
    assert_eq!((levels.join(" "), codes), ("x y".to_string(), vec![0, 1]));
}

#[test]
fn tables_that_are_wrong_name_line_and_column() {
    refused(read("", &[]), &["empty"]);
    refused(read("a,b\n", &[]), &["no rows"]);
    refused(read("a,b,a\n1,2,3\n", &[]), &[":1", "two columns", "`a`"]);
    refused(read("a,b\n1,2\n3\n", &[]), &[":3", "1 cells", "2"]);
    refused(read("a,b\n1,2\n3,4,5\n", &[]), &[":3", "3 cells", "2"]);
    refused(read("a,b\n1,2\n3,\"12,5\"\n", &[]), &[":3", "column `b`", "12,5"]);
    refused(read("a\n1\n\n1e999\n", &[]), &[":4", "column `a`", "1e999"]);
    refused(read("a\n-inf\n1\n", &[]), &[":2", "column `a`", "-inf"]);
    refused(read("a,b\n1,\"x\ny\"\n2\n", &[]), &[":4", "1 cells"]);
    refused(read("a,b\r\n\r\n1,2\r\n\r\n3\r\n", &[]), &[":5", "1 cells"]);
    refused(read("a,b\n1,2\n   \n3,4\n", &[]), &[":3", "1 cells"]);
    refused(read("a,b\n0,z\n1,\"x\n2,y\n", &[]), &[":3", "never closed"]);
    refused(read(",b\n0,1\n", &[]), &[":1", "column 1", "no name"]);
    refused(read("a,b,\n1,2,\n", &[]), &[":1", "column 3", "no name"]);
    refused(read("a\n1\n", &["c"]), &["no column `c`", "there are a"]);
    refused(Table::read("no/such.csv", &[]), &["no/such.csv"]);
    let file = written("a\n1\n");
    std::fs::write(file.path(), b"a,b\n1,\xff\n").unwrap();
    refused(Table::read(file.path(), &[]), &[":2", "UTF-8"]);
    let table = read("a,b,c\n1,x,\n,,\n", &[]).unwrap();
    refused(table.numbers("a"), &["column `a`", "missing"]);
    refused(table.numbers("b"), &["column `b`", "categories"]);
    refused(table.classes("a"), &["column `a`", "numbers"]);
    refused(table.classes("b"), &["column `b`", "missing"]);
    refused(
        Encoder::fit(&table, "a", &[0, 1], Scale::None),
        &["column `c`", "no number"],
    );
}

#[test]
fn scales_are_those_of_scikit_learn() {
    let golden = &json("ch11_scale.json")["scaled"];
    let (fit, new) = (floats(&golden["fit"]), floats(&golden["new"]));
    let lines = fit.iter().chain(&new).map(|x| format!("{x:?},0\n"));
    let table =
        read(&(String::from("x,y\n") + &lines.collect::<String>()), &[]).unwrap();
    let rows: Vec<usize> = (0..fit.len()).collect();
    let others: Vec<usize> = (fit.len()..fit.len() + new.len()).collect();
    for (key, scale) in
        [("standard", Scale::Standard), ("quantile", Scale::Quantile)]
    {
        let encoder = Encoder::fit(&table, "y", &rows, scale).unwrap();
        let found = encoder.encode(&table, &others).unwrap().numbers;
        let found =
            Vec::<f64>::try_from(found.view([-1]).to_kind(Kind::Double)).unwrap();
        let far = gap_of(&found, &floats(&golden[key]));
        assert!(far < 1e-6, "{key}: {far:e}");
    }
}

#[test]
fn gaps_and_unseen_categories_have_their_places() {
    let text = "x,y,c,t\n1,5,a,0\n,6,b,0\n3,7,,0\n9,8,z,0\n";
    let table = read(text, &[]).unwrap();
    let encoder = Encoder::fit(&table, "t", &[0, 1, 2], Scale::Standard).unwrap();
    // x with a column of its gaps, and y; a, b, missing, and all others.
    assert_eq!(
        (encoder.n_cont_features(), encoder.cat_cardinalities()),
        (3, vec![4])
    );
    let f = encoder.encode(&table, &[0, 1, 3]).unwrap();
    let numbers = Vec::<f32>::try_from(f.numbers.view([-1])).unwrap();
    let s = 1.5f32.sqrt(); // y is 5, 6, 7 where it was fitted
    let expected = [-1., 0., -s, 0., 1., 0., 7., 0., 2. * s];
    let far = numbers.iter().zip(expected).map(|(a, b)| (a - b).abs());
    assert!(far.fold(0., f32::max) < 1e-5, "{numbers:?}");
    assert_eq!(Vec::<i64>::try_from(f.categories.view([-1])).unwrap(), [1, 2, 3]);
    // Another table with another kind of column.
    let other = read("x,y,c,t\na,5,a,0\n", &[]).unwrap();
    refused(encoder.encode(&other, &[0]), &["column `x`", "numbers"]);
    refused(encoder.encode(&read("x\n1\n", &[]).unwrap(), &[0]), &["no column `y`"]);
}

#[test]
fn the_tables_that_ship_are_whole() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("examples/data/tables");
    let cancer = Table::read(folder.join("breast_cancer.csv"), &[]).unwrap();
    let (levels, codes) = cancer.classes("diagnosis").unwrap();
    assert_eq!(levels, ["benign", "malignant"]);
    assert_eq!((cancer.rows(), codes.iter().sum::<i64>()), (569, 212));
    let diabetes = Table::read(folder.join("diabetes.csv"), &["sex"]).unwrap();
    let mean = diabetes.numbers("progression").unwrap().iter().sum::<f64>() / 442.;
    assert_eq!((diabetes.rows(), diabetes.names().len()), (442, 11));
    assert!((mean - 152.133_484).abs() < 1e-5, "{mean}"); // as scikit-learn's docs say
}

#[test]
fn the_three_parts_are_all_rows_once() {
    for (rows, seed) in [(10, 0), (442, 1), (569, 2)] {
        let parts = split(rows, seed);
        let sizes = parts.each_ref().map(Vec::len);
        assert_eq!(
            sizes,
            [rows * 3 / 5, rows * 4 / 5 - rows * 3 / 5, rows - rows * 4 / 5]
        );
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..rows).collect::<Vec<_>>());
        assert_eq!(split(rows, seed), parts);
    }
    assert_ne!(split(442, 1), split(442, 2));
}

fn setting(blocks: usize, augment: Augment) -> Setting {
    let (lr, wd, scale) = (3e-3, 1e-2, Scale::Standard);
    Setting { blocks, lr, wd, batch: 32, scale, augment, epochs: 3, patience: 3 }
}

/// Scores are those of an encoder and a model that have seen the first part alone:
/// other numbers in the test rows change no weight and no choice.
#[test]
fn what_is_reported_has_not_been_seen() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("examples/data/tables/diabetes.csv");
    let text = std::fs::read_to_string(path).unwrap();
    let [_, _, test] = split(442, 5);
    let changed = text.lines().enumerate().map(|(i, line)| {
        let there = i > 0 && test.contains(&(i - 1));
        if there {
            format!("99,1,50,99,200,99,99,9,9,99,{}\n", i % 7)
        } else {
            format!("{line}\n")
        }
    });
    let changed = written(&changed.collect::<String>());
    let task = |path: &std::path::Path| {
        let table = Table::read(path, &["sex"]).unwrap();
        Task { table, target: "progression", classes: false }
    };
    let run = |task: &Task| fit(task, setting(1, Augment::Noise), 5).unwrap();
    let (a, b) = (
        run(&task(&root.join("examples/data/tables/diabetes.csv"))),
        run(&task(changed.path())),
    );
    assert_eq!((a.loss, a.validation, a.epochs), (b.loss, b.validation, b.epochs));
    assert_ne!(a.test, b.test);
}

#[test]
fn runs_repeat_and_learn() {
    let task = Task::read("breast_cancer", "diagnosis", &[]).unwrap();
    assert!(task.classes);
    for blocks in [0, 1] {
        let s = setting(blocks, Augment::None);
        let (a, b) = (fit(&task, s, 1).unwrap(), fit(&task, s, 1).unwrap());
        assert_eq!((a.loss, a.test), (b.loss, b.test), "{blocks} blocks");
        // Who always says benign is wrong in 37 of 100.
        assert!(a.validation < 0.2, "{blocks} blocks: {}", a.validation);
    }
    let mixed = fit(&task, setting(1, Augment::Mixup), 1).unwrap();
    assert!(mixed.validation < 0.25, "{}", mixed.validation);
    let missing = Task::read("no_such_table", "y", &[]).unwrap_err().to_string();
    assert!(missing.contains("no_such_table"), "{missing}");
}

#[test]
fn parts_of_a_batch_add_up_to_the_batch() {
    let task = Task::read("diabetes", "progression", &["sex"]).unwrap();
    let gradient = |part: i64| {
        let (encoder, [learn, ..]) = parts(&task, Scale::Standard, 0).unwrap();
        let model = Model::new(&encoder, 2, 0).unwrap();
        for rows in Tensor::arange(60, (Kind::Int64, Device::Cpu)).split(part, 0) {
            let batch = learn.pick(&rows);
            let y = model.forward(&batch.x, Mode::Eval).unwrap();
            let share = rows.size()[0] as f64 / 60.;
            (loss(&task, &y, &batch.y) * share).backward();
        }
        let all =
            model.parameters().into_iter().map(|(_, t)| t.grad().flatten(0, -1));
        Tensor::cat(&all.collect::<Vec<_>>(), 0)
    };
    // Parts of unequal size too.
    for part in [1, 8, 15, 45] {
        let far = gap(&gradient(part), &gradient(60));
        assert!(far < 1e-6, "parts of {part}: {far:e}");
    }
}

#[test]
fn training_stops_when_patience_is_out() {
    let task = Task::read("diabetes", "progression", &["sex"]).unwrap();
    let run = |epochs, patience| {
        let s = Setting { lr: 1e-2, epochs, patience, ..setting(1, Augment::None) };
        fit(&task, s, 1).unwrap()
    };
    let (all, stopped) = (run(30, 30), run(30, 2));
    assert_eq!((all.ran, all.losses.len()), (30, 30));
    assert!(stopped.ran < 30 && stopped.ran == stopped.epochs + 2);
    // What it did until then is the same, and the best epoch is the lowest it saw.
    assert_eq!(stopped.losses[..], all.losses[..stopped.ran]);
    for run in [&all, &stopped] {
        let low = run.losses.iter().map(|l| l[1]).fold(f64::INFINITY, f64::min);
        assert_eq!((run.loss, run.losses[run.epochs - 1][1]), (low, low));
    }
    // Cut off at the best epoch, the last score is the best one's.
    let cut = run(all.epochs, 30);
    assert_eq!((cut.test, cut.last), (all.test, all.test));
}
