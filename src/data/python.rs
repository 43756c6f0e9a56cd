//! What chat templates take from Python and minijinja has not, or has otherwise:
//! `json.dumps`, the text of numbers, and some methods of strings.
use super::guarded::brief;
use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use std::fmt::Write;

type Made<T> = Result<T, Error>;

pub(super) fn refuse<T>(why: impl Into<String>) -> Made<T> {
    Err(Error::new(ErrorKind::InvalidOperation, why.into()))
}

/// Values nest no deeper than this: Python itself gives up at 1000.
const DEEPEST: usize = 200;
/// And have no more parts.
const MOST: usize = 1_000_000;

/// Refuses a value that no printer could come to the end of. Each part of it costs a
/// little fuel.
pub(super) fn bounded(state: &State, value: &Value) -> Made<()> {
    let (mut parts, mut open) = (0, vec![(value.clone(), 0)]);
    while let Some((value, depth)) = open.pop() {
        if depth > DEEPEST || parts + open.len() > MOST {
            return refuse("a value nests too deep, or has too many parts");
        }
        parts += 1;
        let Some(object) = value.as_object() else { continue };
        match value.kind() {
            ValueKind::Map => {
                for (name, value) in object.try_iter_pairs().into_iter().flatten() {
                    open.push((name, depth + 1));
                    open.push((value, depth + 1));
                }
            }
            ValueKind::Seq => {
                let items = object.try_iter().into_iter().flatten();
                open.extend(items.take(MOST + 1).map(|value| (value, depth + 1)));
            }
            _ => {}
        }
    }
    state.consume_fuel(parts as u64 / 8)
}

/// Refuses a value that holds a namespace: one of those could come to hold itself.
pub(super) fn without_namespace(value: &Value) -> Made<()> {
    let (mut parts, mut open) = (0, vec![value.clone()]);
    while let Some(value) = open.pop() {
        parts += 1;
        let Some(object) = value.as_object() else { continue };
        if object.type_name().ends_with("::Namespace") {
            return refuse(
                "a namespace is put into a namespace, which then has no end",
            );
        }
        if parts < MOST && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
            let pairs = object.try_iter_pairs().into_iter().flatten();
            open.extend(pairs.take(MOST).map(|(_, value)| value));
        }
    }
    Ok(())
}

/// `repr` of a float: the shortest digits that read back, with an exponent below
/// 10⁻⁴ and from 10¹⁶ on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0. { "inf" } else { "-inf" }.into();
    }
    let size = x.abs();
    if size != 0. && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let sign = if exponent.starts_with('-') { '-' } else { '+' };
        return format!("{digits}e{sign}{:0>2}", exponent.trim_start_matches('-'));
    }
    format!("{x:?}")
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, under the name
/// and with the defaults that Transformers gives it.
pub(super) fn tojson(
    state: &State,
    value: Value,
    ascii: Option<Value>,
    kwargs: Kwargs,
) -> Made<Value> {
    bounded(state, &value)?;
    let indent = kwargs.get::<Option<Value>>("indent")?.filter(|i| !i.is_none());
    let indent = match indent {
        None => None,
        Some(i) => Some(match (i.as_str(), i.as_i64()) {
            (Some(text), _) => text.to_string(),
            (_, Some(n)) => " ".repeat(usize::try_from(n).unwrap_or(0).min(100)),
            _ => return refuse("tojson: `indent` is neither a number nor a string"),
        }),
    };
    let separators = kwargs.get::<Option<Value>>("separators")?;
    let (item, key) = match separators.filter(|s| !s.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some(pair) => match &pair.try_iter()?.collect::<Vec<_>>()[..] {
            [item, key] => (item.to_string(), key.to_string()),
            _ => return refuse("tojson: `separators` are two strings"),
        },
    };
    let named = kwargs.get::<Option<Value>>("ensure_ascii")?;
    let json = Json {
        ascii: ascii.or(named).is_some_and(|v| v.is_true()),
        sorted: kwargs
            .get::<Option<Value>>("sort_keys")?
            .is_some_and(|v| v.is_true()),
        indent,
        item,
        key,
    };
    kwargs.assert_all_used()?;
    let mut text = String::new();
    json.write(&mut text, &value, 0)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(Value::from(text))
}

struct Json {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Made<()> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => {
                out.push_str(if value.is_true() { "true" } else { "false" })
            }
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => {
                self.string(out, value.as_str().unwrap_or_default())
            }
            ValueKind::Seq => {
                let items = value.try_iter()?;
                self.container(out, ['[', ']'], depth, items, |json, out, item| {
                    json.write(out, &item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                let mut pairs: Vec<_> = pairs.into_iter().flatten().collect();
                if self.sorted {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                let pairs = pairs.into_iter();
                self.container(
                    out,
                    ['{', '}'],
                    depth,
                    pairs,
                    |json, out, (k, v)| {
                        match k.kind() {
                            ValueKind::String => json.string(out, &k.to_string()),
                            ValueKind::None => out.push_str("\"null\""),
                            ValueKind::Bool => {
                                let name =
                                    if k.is_true() { "true" } else { "false" };
                                json.string(out, name);
                            }
                            ValueKind::Number => json.string(out, &number(&k)),
                            _ => return refuse("tojson: a key is no string"),
                        }
                        out.push_str(&json.key);
                        json.write(out, &v, depth + 1)
                    },
                )?;
            }
            other => return refuse(format!("tojson: {other} has no form in JSON")),
        }
        Ok(())
    }

    fn container<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: impl Iterator<Item = T>,
        mut write: impl FnMut(&Self, &mut String, T) -> Made<()>,
    ) -> Made<()> {
        let line = |out: &mut String, depth| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        let mut any = false;
        for item in items {
            if std::mem::replace(&mut any, true) {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            write(self, out, item)?;
            if out.len() > 64 << 20 {
                return refuse("tojson: more than 64 MiB");
            }
        }
        if any {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match (value.is_integer(), f64::try_from(value.clone())) {
        (false, Ok(x)) if x.is_nan() => "NaN".into(),
        (false, Ok(x)) if x.is_infinite() => {
            if x > 0. { "Infinity" } else { "-Infinity" }.into()
        }
        (false, Ok(x)) => float(x),
        _ => value.to_string(),
    }
}

/// Methods that minijinja does not know: first those of Python's strings that its
/// companion lacks, or has without a bound, then the companion's.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Made<Value> {
    match value.as_str() {
        Some(text) => match string_method(state, text, name, args) {
            Err(e) if e.kind() == ErrorKind::UnknownMethod => {}
            made => return made,
        },
        None if name == "copy" && args.is_empty() => return Ok(value.clone()),
        None => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(
    state: &State,
    text: &str,
    name: &str,
    args: &[Value],
) -> Made<Value> {
    let padded = |side: fn(usize, usize) -> usize, zeros: bool| {
        let (width, fill): (usize, Option<&str>) = from_args(args)?;
        let missing = width.saturating_sub(text.chars().count());
        state.consume_fuel(missing as u64 / 16)?;
        let left = side(missing, width);
        let fill = if zeros { "0" } else { fill.unwrap_or(" ") };
        let (sign, rest) = match text.strip_prefix(['+', '-']) {
            Some(rest) if zeros => text.split_at(text.len() - rest.len()),
            _ => ("", text),
        };
        let right = fill.repeat(missing - left);
        Ok(Value::from(format!("{sign}{}{rest}{right}", fill.repeat(left))))
    };
    let place = |found: Option<usize>| match found {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None => refuse("substring not found"),
    };
    let parts = |parts: [&str; 3]| Ok(Tuple::from(parts.map(Value::from)).into());
    let one = || from_args::<(&str,)>(args).map(|(only,)| only);
    match name {
        "removeprefix" => Ok(text.strip_prefix(one()?).unwrap_or(text).into()),
        "removesuffix" => Ok(text.strip_suffix(one()?).unwrap_or(text).into()),
        "partition" => match text.split_once(one()?) {
            Some((before, after)) => parts([before, one()?, after]),
            None => parts([text, "", ""]),
        },
        "rpartition" => match text.rsplit_once(one()?) {
            Some((before, after)) => parts([before, one()?, after]),
            None => parts(["", "", text]),
        },
        "rsplit" => {
            let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok());
            let most = most.unwrap_or(usize::MAX - 1) + 1;
            let mut pieces: Vec<Value> = match by {
                Some("") => return refuse("empty separator"),
                Some(by) => text.rsplitn(most, by).map(Value::from).collect(),
                None => {
                    let (mut pieces, mut rest) = (vec![], text.trim_end());
                    while pieces.len() + 1 < most
                        && let Some((before, word)) =
                            rest.rsplit_once(char::is_whitespace)
                    {
                        pieces.push(Value::from(word));
                        rest = before.trim_end();
                    }
                    let first = (!rest.is_empty()).then(|| Value::from(rest));
                    pieces.extend(first);
                    pieces
                }
            };
            pieces.reverse();
            Ok(Value::from(pieces))
        }
        "index" => place(text.find(one()?)),
        "rindex" => place(text.rfind(one()?)),
        "casefold" => Ok(Value::from(text.to_lowercase())),
        "swapcase" => {
            let swapped = text.chars().flat_map(|c| match c.is_lowercase() {
                true => c.to_uppercase().collect::<Vec<_>>(),
                false => c.to_lowercase().collect(),
            });
            Ok(Value::from(swapped.collect::<String>()))
        }
        "isdecimal" => {
            let all = text.chars().all(|c| c.is_ascii_digit());
            Ok(Value::from(all && !text.is_empty()))
        }
        "ljust" => padded(|_, _| 0, false),
        "rjust" => padded(|missing, _| missing, false),
        // Python's own choice of the side for an odd space.
        "center" => {
            padded(|missing, width| missing / 2 + (missing & width & 1), false)
        }
        "zfill" => padded(|missing, _| missing, true),
        "format" => {
            // The widths of fields are not paid for by those who write them.
            let widths = text.split(|c: char| !c.is_ascii_digit());
            let widths = widths.filter(|w| !w.is_empty());
            let all = widths.map(|w| w.parse::<u32>().map_or(f64::MAX, f64::from));
            if all.sum::<f64>() > 1e6 {
                return refuse(format!("format: {:?} pads too far", brief(text)));
            }
            Err(ErrorKind::UnknownMethod.into())
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}
