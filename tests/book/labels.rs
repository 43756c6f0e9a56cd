//! What the scores of a classifier mean, where PEFT does not say it.
use crate::common::{adapted, lora, refused};
use downhill::data::Labels;
use downhill::lora::{TaskType, save_adapter};
use downhill::train::{Meaning, Task, labels_for, saved_labels, unnamed};
use serde_json::json;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// A classifier's adapter as PEFT saves it: no `config.json`.
fn classifier(scores: i64) -> TempDir {
    let mut config = lora(&["q_proj"], 0.);
    let (_, mut named) = adapted(1, &config);
    config.task_type = TaskType::SeqCls;
    config.modules_to_save = vec!["classifier".into(), "score".into()];
    let weight = Tensor::zeros([scores, 32], (Kind::Float, Device::Cpu));
    named.push(("score.weight".into(), weight));
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &config, "base", &named).unwrap();
    dir
}

fn classes(names: &[&str]) -> Labels {
    Labels::Classes(names.iter().map(|n| n.to_string()).collect())
}

fn given(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

#[test]
fn the_order_of_labels_is_never_guessed() {
    use Task::{CausalLm, Classification, Regression};
    let dir = classifier(2);
    let at = Some(dir.path());
    assert_eq!(saved_labels(dir.path()).unwrap(), Some(Meaning::Unnamed(2)));
    // Numbers are what they are; names have no order.
    let found = labels_for(Classification, at, &[]).unwrap();
    assert_eq!(found, Some((classes(&["0", "1"]), false)));
    let e = downhill::Error::row("rows.csv", 2, "`label` is \"positive\"");
    let text = unnamed(e, dir.path()).to_string();
    for part in ["rows.csv:2", "positive", "--labels NAME0,NAME1", "id2label"] {
        assert!(text.contains(part), "{text}");
    }
    // positive is 0: not as sorted.
    let names = given(&["positive", "negative"]);
    let found = labels_for(Classification, at, &names).unwrap();
    assert_eq!(found, Some((classes(&["positive", "negative"]), true)));
    let three = given(&["a", "b", "c"]);
    refused(
        labels_for(Classification, at, &three),
        &["--labels", "3 names", "2 scores"],
    );
    let twice = given(&["a", "a"]);
    refused(labels_for(Classification, at, &twice), &["--labels", "twice"]);
    refused(labels_for(CausalLm, None, &names), &["--labels", "classification"]);
    refused(labels_for(Regression, at, &[]), &["--task", "classification"]);
    // A new run orders them as it is told.
    let found = labels_for(Classification, None, &names).unwrap();
    assert_eq!(found, Some((classes(&["positive", "negative"]), true)));
    assert_eq!(labels_for(Classification, None, &[]).unwrap(), None);
    let one = classifier(1);
    refused(labels_for(Classification, Some(one.path()), &[]), &["regression"]);
    let found = labels_for(Regression, Some(one.path()), &[]).unwrap();
    assert_eq!(found, Some((Labels::Numbers, true)));
}

#[test]
fn a_folder_may_say_it() {
    let write = |dir: &Path, value: serde_json::Value| {
        fs::write(dir.join("config.json"), value.to_string()).unwrap();
    };
    let dir = classifier(2);
    let at = Some(dir.path());
    let named = json!({"id2label": {"0": "positive", "1": "negative"}});
    write(dir.path(), named);
    let known = Some((classes(&["positive", "negative"]), true));
    assert_eq!(labels_for(Task::Classification, at, &[]).unwrap(), known);
    let same = given(&["positive", "negative"]);
    assert_eq!(labels_for(Task::Classification, at, &same).unwrap(), known);
    let other = given(&["negative", "positive"]);
    let parts = ["--labels", "negative,positive", "positive,negative"];
    refused(labels_for(Task::Classification, at, &other), &parts);
    // transformers' own numbers say nothing.
    write(dir.path(), json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}));
    assert_eq!(saved_labels(dir.path()).unwrap(), Some(Meaning::Unnamed(2)));
    write(dir.path(), json!({"id2label": {"0": "a", "1": "b", "2": "c"}}));
    refused(saved_labels(dir.path()), &["id2label", "3 names", "2 scores"]);
    write(dir.path(), json!({"problem_type": "multi_label_classification"}));
    refused(saved_labels(dir.path()), &["multi_label"]);
    // Or the adapter's own settings do.
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["id2label"] = json!({"0": "positive", "1": "negative"});
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(labels_for(Task::Classification, at, &[]).unwrap(), known);
}
