//! Damage to JSON, value by value.

use super::mutate::{NUMBERS, string};
use super::random::Rng;
use serde_json::{Map, Value};

/// Marks a string whose text goes into the file as it is, for what JSON cannot say.
const RAW: &str = "@@raw:";

fn raw(text: impl std::fmt::Display) -> Value {
    Value::String(format!("{RAW}{text}@@"))
}

/// The text of a value, its raw parts as they are.
pub fn text(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(&format!("\"{RAW}")) {
        let (inside, after) = after.split_once("@@\"").unwrap_or((after, ""));
        out += before;
        out += &inside.replace("\\\"", "\"").replace("\\\\", "\\");
        rest = after;
    }
    out + rest
}

/// Changes one value, or says what it did instead where there is no JSON.
pub fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
        let at = rng.below(bytes.len() + 1);
        let insert = *rng.of(b"{}[\",:\\9");
        bytes.insert(at, insert);
        return format!("{:?} at byte {at}", insert as char);
    };
    let done = edit(&mut value, rng);
    *bytes = text(&value).into_bytes();
    done
}

/// Changes one value of a tree.
pub fn edit(value: &mut Value, rng: &mut Rng) -> String {
    let mut path = String::new();
    let place = walk(value, &mut path, rng);
    let what = change(place, rng);
    let short: String = path.chars().take(60).collect();
    format!("{short} {what}")
}

/// Goes down from the root, every child as likely as the others: so large lists do not
/// draw all of the damage.
fn walk<'a>(
    value: &'a mut Value,
    path: &mut String,
    rng: &mut Rng,
) -> &'a mut Value {
    let children = match &*value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if children == 0 || (!path.is_empty() && rng.once_in(4)) {
        return value;
    }
    let at = rng.below(children);
    let child = match value {
        Value::Object(map) => {
            let (key, child) = map.iter_mut().nth(at).expect("counted");
            path.push('.');
            path.push_str(key);
            child
        }
        Value::Array(list) => {
            path.push_str(&format!("[{at}]"));
            &mut list[at]
        }
        _ => unreachable!("it has children"),
    };
    walk(child, path, rng)
}

fn change(value: &mut Value, rng: &mut Rng) -> String {
    match rng.below(12) {
        0..=2 => number(value, rng),
        3 => {
            let new = string(rng);
            let told = format!("a string of {} bytes", new.len());
            *value = Value::String(new);
            told
        }
        4 => {
            let kinds = [
                "null",
                "true",
                "[]",
                "{}",
                "\"\"",
                "[null]",
                "{\"\":{}}",
                "[[1,2],[3]]",
                "\"\\ud800\"",
            ];
            let new = *rng.of(&kinds);
            *value = raw(new);
            format!("is {new}")
        }
        5 => {
            let depth = *rng.of(&[100, 127, 200, 5_000, 100_000]);
            let (open, close) = *rng.of(&[("[", "]"), ("{\"a\":", "}")]);
            *value = raw(open.repeat(depth) + "1" + &close.repeat(depth));
            format!("nested {depth} deep")
        }
        6 => {
            let old = value.clone();
            let n = *rng.of(&[2, 3, 1000, 100_000]);
            let n = if old.to_string().len() > 100 { 2 } else { n };
            *value = Value::Array(vec![old; n]);
            format!("{n} times in a list")
        }
        _ => inside(value, rng),
    }
}

fn number(value: &mut Value, rng: &mut Rng) -> String {
    let new = match value.as_i64() {
        Some(n) if rng.once_in(2) => {
            let near = [
                n.wrapping_add(1),
                n.wrapping_sub(1),
                n.wrapping_neg(),
                n.wrapping_mul(2),
                n / 2,
                n.wrapping_mul(1_000_003),
            ];
            rng.of(&near).to_string()
        }
        _ => rng.of(&NUMBERS).to_string(),
    };
    *value = raw(&new);
    format!("is {new}")
}

/// Changes what is in an object or a list; another value becomes a number.
fn inside(value: &mut Value, rng: &mut Rng) -> String {
    match value {
        Value::Object(map) if !map.is_empty() => in_object(map, rng),
        Value::Array(list) if !list.is_empty() => {
            let at = rng.below(list.len());
            let other = rng.below(list.len());
            match rng.below(4) {
                0 => {
                    list.remove(at);
                    format!("without its item {at}")
                }
                1 => {
                    list.insert(other, list[at].clone());
                    format!("with its item {at} twice")
                }
                2 => {
                    list.swap(at, other);
                    format!("with items {at} and {other} changed")
                }
                _ => {
                    list.clear();
                    "without any item".into()
                }
            }
        }
        Value::String(text) if !text.is_empty() => {
            let chars: Vec<char> = text.chars().collect();
            let at = rng.below(chars.len());
            let (before, after) = chars.split_at(at);
            let (before, after) =
                (String::from_iter(before), String::from_iter(after));
            *text = match rng.below(3) {
                0 => before,
                1 => before + &string(rng) + &after,
                _ => format!("{after}{before}"),
            };
            format!("bent at character {at}")
        }
        other => number(other, rng),
    }
}

fn in_object(map: &mut Map<String, Value>, rng: &mut Rng) -> String {
    let keys: Vec<String> = map.keys().cloned().collect();
    let (one, other) = (rng.of(&keys).clone(), rng.of(&keys).clone());
    let a = map.get(&one).cloned().unwrap_or_default();
    let b = map.get(&other).cloned().unwrap_or_default();
    let short: String = one.chars().take(40).collect();
    match rng.below(5) {
        0 | 1 => {
            map.remove(&one);
            format!("without {short}")
        }
        2 => {
            map.insert(one, b);
            map.insert(other.clone(), a);
            format!("with {short} and {other} changed")
        }
        3 => {
            // A key twice, which a tree cannot hold.
            let tail = format!("{a}, {}: {b}", Value::String(one.clone()));
            map.insert(one, raw(tail));
            format!("with {short} twice")
        }
        _ => {
            map.remove(&one);
            map.insert(string(rng), a);
            format!("with another name for {short}")
        }
    }
}

/// Chat templates that run away, nest, pad, fail or print what they should not.
const TEMPLATES: [&str; 22] = [
    "{% for i in range(1000000000) %}a{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "{{ 'x' * 1000000000 }}",
    "{{ '{:>300000000}'.format(5) }}",
    "{{ '%300000000d' % 5 }}",
    "{{ 'a'.center(300000000) }}",
    "{{ 'a' | indent(300000000) }}",
    "{{ messages | tojson(indent=100000000) }}",
    "{% set x = 'ab' %}{% for i in range(40) %}{% set x = x ~ x %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x \
     %}{% endfor %}{{ ns.x }}",
    "{{ messages[99].content }}",
    "{{ messages[-1].content[100:0:-1] }}",
    "{{ raise_exception('\\x1b[31m' ~ 'no'*10000) }}",
    "{{ 1 // 0 }}{{ 1 % 0 }}",
    "{{ 9223372036854775807 + 1 }}{{ -9223372036854775808 // -1 }}{{ 2 ** 9999 }}",
    "{% include 'x' %}{% extends 'y' %}",
    "{{ strftime_now('%Q%9999999d %+') }}",
    "{{ self }}{{ cycler }}{{ joiner() }}{{ dict(a=1) }}{{ undefined.a.b }}",
    "{% if messages %}",
    "{{ messages | map(attribute='content') | join(messages) | batch(0) | list }}",
];

/// Puts a hostile template into a tokenizer's settings, or bends the one that is there.
pub fn template(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    let Ok(Value::Object(mut map)) = serde_json::from_slice::<Value>(bytes) else {
        return mutate(bytes, rng);
    };
    let old = map.get("chat_template").and_then(Value::as_str).unwrap_or_default();
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let old = if old.is_empty() { plain } else { old };
    let chars: Vec<char> = old.chars().collect();
    let (a, b) = (rng.below(chars.len()), rng.below(chars.len()));
    let (a, b) = (a.min(b), a.max(b));
    let text = |part: &[char]| part.iter().collect::<String>();
    let depth = *rng.of(&[50, 200, 2_000, 60_000]);
    let (new, told) = match rng.below(7) {
        0..=2 => {
            let hostile = *rng.of(&TEMPLATES);
            (hostile.to_string(), format!("{hostile:.50}"))
        }
        3 => {
            let (open, middle, close) = *rng.of(&[
                ("{% if true %}", "x", "{% endif %}"),
                ("{% for i in [1] %}", "x", "{% endfor %}"),
                ("{{ 1+", "1 }}", ""),
                ("{{ ", "1 }}", ""),
                ("(", "", ")"),
            ]);
            let nested = match open {
                "{{ 1+" => format!("{{{{ {}1 }}}}", "1+".repeat(depth)),
                "{{ " => {
                    format!("{{{{ {}1{} }}}}", "(".repeat(depth), ")".repeat(depth))
                }
                _ => open.repeat(depth) + middle + &close.repeat(depth),
            };
            (nested, format!("{open} nested {depth} deep"))
        }
        4 => (text(&chars[..a]) + &text(&chars[b..]), format!("without {a}..{b}")),
        5 => {
            (text(&chars[..b]) + &text(&chars[a..]), format!("with {a}..{b} twice"))
        }
        _ => {
            let insert = rng.of(&TEMPLATES);
            (
                text(&chars[..a]) + insert + &text(&chars[a..]),
                format!("with {insert:.30} at {a}"),
            )
        }
    };
    map.insert("chat_template".into(), Value::String(new));
    *bytes = Value::Object(map).to_string().into_bytes();
    format!("chat_template {told}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_parts_go_into_the_text_as_they_are() {
        let value = serde_json::json!({"a": raw("1e999"), "b": raw("\"\\ud800\"")});
        assert_eq!(text(&value), "{\"a\":1e999,\"b\":\"\\ud800\"}");
    }
}
