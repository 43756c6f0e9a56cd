//! What labels are: classes by their names, or numbers.
use super::{rows::RowResult, summary::some};
use crate::{Error, Result};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    path::Path,
};

/// What the labels of a file are.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// One of these names each; the place of a name is the number of its class.
    Classes(Vec<String>),
    /// A number each.
    Numbers,
}

/// What is done about a bad row, of which line and fault are given.
pub(super) type OnBad<'a> = &'a mut dyn FnMut(usize, String) -> Result<()>;

impl Labels {
    /// Scores that a model gives for them.
    pub fn scores(&self) -> i64 {
        match self {
            Self::Classes(names) => names.len() as i64,
            Self::Numbers => 1,
        }
    }

    /// The number of the class by its name as it stands, and as [`class`] writes it.
    pub(super) fn numbers(&self) -> HashMap<String, usize> {
        let Self::Classes(names) = self else { return HashMap::new() };
        let named = |(i, name): (usize, &String)| (class(name).into_owned(), i);
        let mut numbers: HashMap<String, usize> =
            names.iter().enumerate().rev().map(named).collect();
        numbers.extend(names.iter().cloned().zip(0..));
        numbers
    }

    /// What a label says is to be learned.
    pub(super) fn target(
        &self,
        label: &str,
        numbers: &HashMap<String, usize>,
    ) -> RowResult<f64> {
        match self {
            Self::Classes(names) => {
                let there = numbers.get(label);
                match there.or_else(|| numbers.get(&*class(label))) {
                    Some(i) => Ok(*i as f64),
                    None => Err(format!(
                        "`label` is {label:?}, which the training rows do not have; \
                         expected {}",
                        some(names)
                    )),
                }
            }
            Self::Numbers => match label.parse::<f64>() {
                Ok(x) if (x as f32).is_finite() => Ok(x),
                _ => Err(format!("`label` is {label:?}; expected a finite number")),
            },
        }
    }

    /// The distinct labels of a file: of each row the line, the label, and whether it
    /// is a truth value of JSON.
    pub(super) fn classes(
        path: &Path,
        rows: Vec<(usize, &str, bool)>,
        on_bad: OnBad,
    ) -> Result<Self> {
        let distinct: BTreeSet<Cow<str>> = rows.iter().map(|r| class(r.1)).collect();
        let mut names: Vec<String> =
            distinct.into_iter().map(Cow::into_owned).collect();
        if names.iter().any(|n| !TRUTHS.contains(&n.as_str()))
            && let Some((line, label, _)) = rows.iter().find(|r| r.2)
        {
            let others = names.iter().filter(|n| !TRUTHS.contains(&n.as_str()));
            let others: Vec<String> = others.cloned().collect();
            let what = format!(
                "`label` is {}, but other rows have {}; expected labels of one kind",
                label,
                some(&others)
            );
            on_bad(*line, what)?;
        }
        let numbers: Option<Vec<i64>> =
            names.iter().map(|n| n.parse().ok()).collect();
        match numbers {
            Some(_) => names.sort_by_key(|n| n.parse::<i64>().unwrap_or(0)),
            None if names.iter().all(|n| n.parse::<f64>().is_ok()) => {
                let what = "the labels are numbers, and not whole ones; use --task \
                        regression, or write the classes as names";
                return Err(Error::file(path, what));
            }
            None => {}
        }
        if let [only] = &names[..] {
            let what = format!(
                "every row has the label {only:?}; a classification needs at least 2"
            );
            return Err(Error::file(path, what));
        }
        Ok(Self::Classes(names))
    }
}

/// A label as the name of a class. A whole number is the same class however it is
/// written: a table in which one label was missing has 1.0 for 1. So is a truth value.
fn class(label: &str) -> Cow<'_, str> {
    let (sign, digits) = match label.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", label),
    };
    let (whole, zeros) = digits.split_once('.').unwrap_or((digits, ""));
    let number = !whole.is_empty()
        && whole.bytes().all(|b| b.is_ascii_digit())
        && (whole == "0" || !whole.starts_with('0'))
        && zeros.bytes().all(|b| b == b'0');
    if number {
        let sign = if whole == "0" { "" } else { sign };
        return (sign.to_string() + whole).into();
    }
    match TRUTHS.iter().find(|t| t.eq_ignore_ascii_case(label)) {
        Some(truth) => (*truth).into(),
        None => label.into(),
    }
}

const TRUTHS: [&str; 2] = ["false", "true"];
