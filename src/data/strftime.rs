//! Dates as Python's `strftime` writes them, for `strftime_now`.
use super::{guarded::brief, rows::RowResult};
use chrono::{
    Local, NaiveDateTime,
    format::{Item, StrftimeItems},
};
use std::fmt::Write;

/// The time by the user's clock.
pub(super) fn now() -> NaiveDateTime {
    Local::now().naive_local()
}

/// `time` by the codes of Python's `strftime`, in its plain locale. As there, a time
/// that knows no zone leaves `%z` and `%Z` empty.
pub(super) fn strftime(format: &str, time: NaiveDateTime) -> RowResult<String> {
    let mut codes = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '%').then(|| chars.next()).flatten()) {
            (_, Some('z' | 'Z')) => {}
            (_, Some('f')) => codes.push_str("%6f"),
            // The quarter of the year, which Python does not know.
            (_, Some('q')) => return Err(unknown(format)),
            (_, Some(code)) => codes.extend([c, code]),
            (_, None) => codes.push(c),
        }
    }
    let items: Vec<Item> = StrftimeItems::new(&codes).collect();
    let mut text = String::new();
    if items.contains(&Item::Error)
        || write!(text, "{}", time.format_with_items(items.iter())).is_err()
    {
        return Err(unknown(format));
    }
    Ok(text)
}

fn unknown(format: &str) -> String {
    format!("strftime_now({:?}) has a code that is none of Python's", brief(format))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(format: &str, seconds: i64) -> RowResult<String> {
        let time = chrono::DateTime::from_timestamp(seconds, 120_000_000);
        strftime(format, time.expect("a time").naive_utc())
    }

    #[test]
    fn dates() {
        let date = |seconds| at("%d %b %Y|%Y-%m-%d %H:%M:%S|%B", seconds).unwrap();
        assert_eq!(date(0), "01 Jan 1970|1970-01-01 00:00:00|January");
        assert_eq!(date(951_782_399), "28 Feb 2000|2000-02-28 23:59:59|February");
        assert_eq!(date(951_782_400), "29 Feb 2000|2000-02-29 00:00:00|February");
        assert_eq!(date(1_798_761_599), "31 Dec 2026|2026-12-31 23:59:59|December");
        assert!(at("%q", 0).is_err() && at("%", 0).is_err());
    }

    /// What Python 3.11 writes for datetime(2024, 3, 5, 16, 7, 9, 120000).
    #[test]
    fn every_common_code_is_pythons() {
        let expected = [
            ("%A %a %B %b %h", "Tuesday Tue March Mar Mar"),
            ("%d %-d %e %m %-m %Y %y %C", "05 5  5 03 3 2024 24 20"),
            ("%H %-H %I %-I %M %-M %S %-S %p", "16 16 04 4 07 7 09 9 PM"),
            ("%j %-j %U %W %w %u %V %G %%", "065 65 09 10 2 2 10 2024 %"),
            ("%F %T %D %R %f", "2024-03-05 16:07:09 03/05/24 16:07 120000"),
            (
                "%c|%x|%X|%r",
                "Tue Mar  5 16:07:09 2024|03/05/24|16:07:09|04:07:09 PM",
            ),
            ("%k %l %P", "16  4 pm"),
            ("a%zb%Zc d%%", "abc d%"),
        ];
        for (format, text) in expected {
            assert_eq!(at(format, 1_709_654_829).as_deref(), Ok(text), "{format}");
        }
    }
}
