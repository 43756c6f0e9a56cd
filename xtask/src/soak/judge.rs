//! What no run may do, whatever it is given.

use super::child::Ended;

/// Kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A result that is not that of the undisturbed run.
    BitsLost,
    /// Rust's panic, whether or not it was caught.
    Panic,
    /// An end by a signal, or an exit code that no error has.
    Abort,
    /// No end in time.
    Hang,
    /// A file of the user's was changed, moved or removed.
    Touched,
    /// A file under its final name that is not whole.
    Torn,
    /// A failure that did not lead to an error.
    Unsaid,
    /// A message that is missing, too long, of many lines, or names nothing.
    Message,
    /// Control characters that reach the terminal.
    Control,
    /// Half-written files that nothing removes.
    Leftover,
    /// A run that should have worked.
    Refused,
}

impl Cause {
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::BitsLost, "bits lost"),
        (Self::Panic, "panics"),
        (Self::Abort, "aborts"),
        (Self::Hang, "hangs"),
        (Self::Touched, "files of the user touched"),
        (Self::Torn, "files half-written under a final name"),
        (Self::Unsaid, "failures without an error"),
        (Self::Message, "messages that do not help"),
        (Self::Control, "raw control characters"),
        (Self::Leftover, "half-written files left behind"),
        (Self::Refused, "runs refused that should work"),
    ];

    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(cause, _)| *cause == self);
        found.map_or("", |(_, name)| name)
    }
}

/// Bytes and lines that a message may have: a line, and perhaps a hint or an excerpt.
const LONGEST: usize = 4096;
const LINES: usize = 6;

/// What is wrong with the end of a run, for which these exit codes are in order.
pub fn faults(ended: &Ended, codes: &[i32]) -> Vec<(Cause, String)> {
    let mut found = Vec::new();
    let said = |cause, what: String| (cause, what);
    if let Some(at) = ended.err.find("panicked at") {
        let text: String = ended.err[at..].chars().take(300).collect();
        found.push(said(Cause::Panic, text.replace('\n', " ")));
    }
    if ended.hung {
        let last = ended.last_line();
        let what = format!("no end after {:.0} s: {last}", ended.took.as_secs_f64());
        found.push(said(Cause::Hang, what));
        return found;
    }
    match ended.code {
        Some(code) if codes.contains(&code) => {}
        _ if !found.is_empty() => {}
        Some(code) if code < 126 && code != 101 => {
            let what = format!("exit {code}, not {codes:?}: {}", ended.last_line());
            found.push(said(
                if code == 0 { Cause::Unsaid } else { Cause::Abort },
                what,
            ));
        }
        _ => {
            let what = format!("{}: {}", ended.how(), ended.last_line());
            found.push(said(Cause::Abort, what));
        }
    }
    let raw = |c: &char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if let Some(c) = ended.err.chars().find(raw) {
        let what = format!("{c:?} on stderr: {:?}", ended.last_line());
        found.push(said(Cause::Control, what));
    }
    let message = ended.message();
    if ended.code == Some(1) && message.is_empty() && found.is_empty() {
        let what = format!("exit 1 without `error: …`: {}", ended.last_line());
        found.push(said(Cause::Message, what));
    }
    if message.len() > LONGEST {
        let start: String = message.chars().take(200).collect();
        let what = format!("{} bytes: {start}", message.len());
        found.push(said(Cause::Message, what));
    } else if ended.code == Some(1) && message.lines().count() > LINES {
        let (n, text) = (message.lines().count(), message.replace('\n', "⏎"));
        found.push(said(Cause::Message, format!("{n} lines: {text:.300}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ended(code: Option<i32>, signal: Option<i32>, err: &str) -> Ended {
        let (err, took) = (err.to_string(), Duration::ZERO);
        Ended { code, signal, hung: false, out: String::new(), err, took }
    }

    fn causes(ended: &Ended) -> Vec<Cause> {
        faults(ended, &[0, 1]).into_iter().map(|(cause, _)| cause).collect()
    }

    #[test]
    fn good_ends_are_not_reported() {
        assert_eq!(causes(&ended(Some(0), None, "step 1/3\tloss 2\n")), []);
        assert_eq!(causes(&ended(Some(1), None, "step 1\nerror: a.json: no\n")), []);
    }

    #[test]
    fn each_bad_end_has_its_cause() {
        let panic = "thread 'main' panicked at src/x.rs:1:2:\nindex\n";
        let long = format!("error: {}", "x".repeat(5000));
        for (cause, end) in [
            (Cause::Panic, ended(Some(101), None, panic)),
            (Cause::Panic, ended(Some(1), None, &format!("{panic}error: x"))),
            (Cause::Abort, ended(Some(101), None, "")),
            (Cause::Abort, ended(None, Some(11), "error: a")),
            (Cause::Abort, ended(Some(134), None, "error: a")),
            (Cause::Abort, ended(Some(3), None, "error: a")),
            (Cause::Control, ended(Some(1), None, "error: a\u{1b}[2J")),
            (Cause::Message, ended(Some(1), None, "something\n")),
            (Cause::Message, ended(Some(1), None, &long)),
            (Cause::Message, ended(Some(1), None, "error: a\nb\nc\nd\ne\nf\ng")),
        ] {
            assert_eq!(causes(&end), [cause], "{} {:.40}", end.how(), end.err);
        }
        let mut hang = ended(None, Some(9), "");
        hang.hung = true;
        assert_eq!(causes(&hang), [Cause::Hang]);
    }
}
