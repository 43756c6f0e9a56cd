//! Damage to a file that knows what the file is: numbers go to extremes, values change
//! their kind, parts go missing, come twice or change places, and now and then bytes
//! are bent without regard to any of it. `examples/fuzz_readers/` uses the same.

use super::random::Rng;
use super::{json, tensors};

/// How the bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Json,
    /// `tokenizer_config.json`, of which the chat template matters most.
    Template,
    JsonLines,
    Csv,
    Toml,
    Safetensors,
    Bytes,
}

/// The bytes with one to three faults, and what these are.
pub fn mutate(bytes: &[u8], format: Format, rng: &mut Rng) -> (Vec<u8>, String) {
    let (mut bytes, mut told) = (bytes.to_vec(), Vec::new());
    for _ in 0..1 + rng.below(8) / 6 + rng.below(8) / 7 {
        let done = match format {
            _ if rng.once_in(6) => bent(&mut bytes, rng),
            Format::Json => json::mutate(&mut bytes, rng),
            Format::Template if !rng.once_in(4) => json::template(&mut bytes, rng),
            Format::Template => json::mutate(&mut bytes, rng),
            Format::JsonLines => a_line(&mut bytes, rng, rows),
            Format::Csv => a_line(&mut bytes, rng, cells),
            Format::Toml => a_line(&mut bytes, rng, setting),
            Format::Safetensors => tensors::mutate(&mut bytes, rng),
            Format::Bytes => bent(&mut bytes, rng),
        };
        told.push(done);
    }
    (bytes, told.join("; "))
}

/// What strings may hold that nobody expects.
pub const STRINGS: [&str; 16] = [
    "",
    " ",
    "\u{1b}[31mred\u{7}\u{8}",
    "\0",
    "\u{202e}\u{2066}\u{feff}",
    "line\nbreak\r\n\u{2028}\ttab",
    "../../../../etc/passwd",
    "/dev/zero",
    "nan",
    "-1",
    "%s%n{}{0}{{ }}{% %}",
    "\u{10ffff}\u{fffd}",
    "ﷺ🧑‍🤝‍🧑e\u{301}",
    "(a+)+$",
    "'; \"\\",
    "null",
];

/// A short or a very long string.
pub fn string(rng: &mut Rng) -> String {
    let short = *rng.of(&STRINGS);
    if rng.once_in(5) {
        let unit = if short.is_empty() { "a" } else { short };
        unit.repeat(1 << (8 + rng.below(9)))
    } else {
        short.to_string()
    }
}

/// Numbers at the edges of what programs hold.
pub const NUMBERS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "2",
    "-0.0",
    "0.1",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "-1e999",
    "5e-324",
    "NaN",
    "Infinity",
    "0x10",
];

/// Bytes bent blindly.
fn bent(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    let n = bytes.len();
    let at = rng.below(n + 1);
    let to = (at + 1 + rng.below(1 + (n - at) / 4)).min(n);
    match rng.below(12) {
        0 => {
            bytes.truncate(at);
            format!("cut to {at} bytes of {n}")
        }
        1 => {
            bytes.truncate(rng.below(12).min(n));
            format!("cut to {} bytes", bytes.len())
        }
        2 | 3 if n > 0 => {
            let flips = 1 + rng.below(8);
            for _ in 0..flips {
                let at = rng.below(n);
                bytes[at] ^= 1 << rng.below(8);
            }
            format!("{flips} bits flipped")
        }
        4 => {
            let raw: &[&[u8]] =
                &[b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"];
            let insert = *rng.of(raw);
            bytes.splice(at..at, insert.iter().copied());
            format!("bytes {insert:02x?}, no UTF-8, at {at}")
        }
        5 => {
            bytes.drain(at..to);
            format!("bytes {at} to {to} gone")
        }
        6 => {
            let copy = bytes[at..to].to_vec();
            bytes.splice(at..at, copy);
            format!("bytes {at} to {to} twice")
        }
        7 => {
            bytes.splice(0..0, *b"\xef\xbb\xbf");
            "a byte order mark before it".into()
        }
        8 => {
            let fill = vec![*rng.of(&[0, b' ', b'\n', b'[', b'{', 0xff]); 70_000];
            bytes.splice(at..at, fill);
            format!("70000 times one byte at {at}")
        }
        9 => {
            *bytes = String::from_utf8_lossy(bytes).replace('\n', "\r\n").into();
            "line ends of Windows".into()
        }
        10 => {
            let control = *rng.of(&[0u8, 7, 8, 0x1b, 0x7f, 0x9b]);
            bytes.splice(at..at, [control, b'[', b'2', b'J']);
            format!("control character {control:#04x} at {at}")
        }
        _ => {
            bytes.clear();
            let all: [&[u8]; 6] =
                [b"", b"\n", b"null", b"[]", b"{}", b"version https://git-lfs"];
            let one: &[u8] = all[rng.below(all.len())];
            bytes.extend_from_slice(one);
            format!("nothing but {:?}", String::from_utf8_lossy(bytes))
        }
    }
}

/// One line of a text changed by `change`, or lines moved about.
fn a_line(
    bytes: &mut Vec<u8>,
    rng: &mut Rng,
    change: fn(&mut Vec<u8>, &mut Rng) -> String,
) -> String {
    let mut lines: Vec<Vec<u8>> =
        bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let at = rng.below(lines.len());
    let done = match rng.below(10) {
        0 => {
            lines.remove(at);
            "gone".into()
        }
        1 => {
            lines.insert(at, lines[at].clone());
            "twice".into()
        }
        2 => {
            lines.insert(at, vec![]);
            "with an empty line before it".into()
        }
        3 => {
            let other = rng.below(lines.len());
            lines.swap(at, other);
            format!("and line {} have changed places", other + 1)
        }
        _ => change(&mut lines[at], rng),
    };
    *bytes = lines.join(&b'\n');
    format!("line {} {done}", at + 1)
}

fn rows(line: &mut Vec<u8>, rng: &mut Rng) -> String {
    json::mutate(line, rng)
}

fn cells(line: &mut Vec<u8>, rng: &mut Rng) -> String {
    let text = String::from_utf8_lossy(line).into_owned();
    let mut cells: Vec<String> = text.split(',').map(String::from).collect();
    let at = rng.below(cells.len());
    let done = match rng.below(7) {
        0 => {
            cells[at] = rng.of(&NUMBERS).to_string();
            format!("cell {at} is {}", cells[at])
        }
        1 => {
            cells[at] = string(rng);
            format!("cell {at} is a string of {} bytes", cells[at].len())
        }
        2 => {
            cells[at].insert(0, '"');
            format!("cell {at} opens a quotation")
        }
        3 => {
            cells.remove(at);
            format!("cell {at} gone")
        }
        4 => {
            cells.insert(at, cells[at].clone());
            format!("cell {at} twice")
        }
        5 => {
            cells.resize(cells.len() + 10_000, String::new());
            "10000 more cells".into()
        }
        _ => {
            cells[at].clear();
            format!("cell {at} empty")
        }
    };
    *line = cells.join(",").into_bytes();
    done
}

/// A line of TOML: `key = value`.
fn setting(line: &mut Vec<u8>, rng: &mut Rng) -> String {
    let text = String::from_utf8_lossy(line).into_owned();
    let (key, value) = text.split_once('=').unwrap_or((&text, " 1"));
    let new = match rng.below(7) {
        0 | 1 => format!("{key}= {}", rng.of(&NUMBERS)),
        2 => format!("{key}= {:?}", string(rng)),
        3 => format!("{key}= [{value}, {value}]"),
        4 => format!("{key}= {}{}", "[".repeat(5000), "]".repeat(5000)),
        5 => format!("{key}.{key}= {value}"),
        _ => format!("[{key}]\n{text}"),
    };
    *line = new.into_bytes();
    let shown: String = String::from_utf8_lossy(line).chars().take(60).collect();
    format!("is {shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_damage_and_there_is_some() {
        let text = b"{\"a\": [1, 2.5, \"x\"], \"b\": {\"c\": null, \"d\": true}}\n";
        let formats = [Format::Json, Format::JsonLines, Format::Csv, Format::Toml];
        for format in formats {
            let all = |seed| -> Vec<_> {
                let one = |k| mutate(text, format, &mut Rng::new(seed, "t", k));
                (0..60).map(one).collect()
            };
            assert_eq!(all(1), all(1));
            assert_ne!(all(1), all(2));
            let changed = all(1).iter().filter(|(b, _)| b != text).count();
            assert!(changed > 50, "{format:?}: {changed} of 60 changed");
        }
    }
}
