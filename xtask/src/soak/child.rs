//! A run of the command as a user starts it, with limits, its output kept.

use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// More output than this is read and forgotten.
const KEPT: usize = 4 << 20;

/// What to run: a program, its arguments, what it finds around it.
#[derive(Clone)]
pub struct Call {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// Shell words before the program starts: limits, closed files, another folder.
    before: Vec<String>,
    /// Redirections, such as `2>&-`.
    after: String,
    /// Memory that may be mapped, in KiB.
    memory: Option<u64>,
    /// The line of a call that follows.
    then: String,
}

/// How a run ended.
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// It had to be killed: it did not end in time.
    pub hung: bool,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Call {
    pub fn new(program: &Path) -> Self {
        Self {
            args: vec![program.into()],
            env: vec![],
            before: vec![],
            after: String::new(),
            memory: None,
            then: String::new(),
        }
    }

    pub fn args<S: AsRef<OsStr>>(
        mut self,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_os_string()));
        self
    }

    /// A flag and a path.
    pub fn path(self, flag: &str, path: impl AsRef<Path>) -> Self {
        self.args([OsStr::new(flag), path.as_ref().as_os_str()])
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().into()));
        self
    }

    pub fn before(mut self, shell: impl Into<String>) -> Self {
        self.before.push(shell.into());
        self
    }

    pub fn after(mut self, redirection: impl Into<String>) -> Self {
        self.after = redirection.into();
        self
    }

    pub fn memory(mut self, kib: u64) -> Self {
        self.memory = Some(kib);
        self
    }

    /// This call, and another after it, as one finding.
    pub fn then(&self, next: &Self) -> Self {
        Self { then: format!("\n{}", next.line()), ..self.clone() }
    }

    /// The shell's program: by `exec`, so that the process is the command itself.
    fn script(&self) -> String {
        let mut text = String::new();
        if let Some(kib) = self.memory {
            let _ = write!(text, "ulimit -v {kib}; ");
        }
        for part in &self.before {
            let _ = write!(text, "{part}; ");
        }
        text + "exec \"$0\" \"$@\" " + &self.after
    }

    /// A line for a shell that does it again.
    pub fn line(&self) -> String {
        let mut text = String::from("(");
        for (key, value) in &self.env {
            let value = quoted(value);
            let _ = write!(text, "export {}={value}; ", key.to_string_lossy());
        }
        let words: Vec<String> = self.args.iter().map(|a| quoted(a)).collect();
        text + &self.script().replace("\"$0\" \"$@\"", &words.join(" "))
            + ")"
            + &self.then
    }

    pub fn start(&self) -> Result<Running> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(self.script()).args(&self.args);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            command.env("OMP_NUM_THREADS", "1");
        }
        command.env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start /bin/sh")?;
        let out = keep(child.stdout.take());
        let err = keep(child.stderr.take());
        Ok(Running { child, out, err, began: Instant::now() })
    }

    /// Runs to the end, or to the limit.
    pub fn run(&self, seconds: u64) -> Result<Ended> {
        self.start()?.end(seconds)
    }
}

/// A word for a shell.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

type Reader = JoinHandle<Vec<u8>>;

fn keep(from: Option<impl Read + Send + 'static>) -> Reader {
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 1 << 14]);
        let Some(mut from) = from else { return kept };
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            let room = KEPT - kept.len();
            kept.extend_from_slice(&buffer[..n.min(room)]);
        }
        kept
    })
}

/// A run that has begun.
pub struct Running {
    child: Child,
    out: Reader,
    err: Reader,
    began: Instant,
}

impl Running {
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until then, or until `seen`; whether it still runs.
    pub fn wait(&mut self, until: Duration, seen: impl Fn() -> bool) -> bool {
        while self.runs() {
            if self.began.elapsed() >= until || seen() {
                return true;
            }
            sleep(Duration::from_millis(2));
        }
        false
    }

    /// Sends a signal by its name, as `kill` of the shell does.
    pub fn signal(&self, name: &str) {
        let script = format!("kill -s {name} {} 2>/dev/null", self.child.id());
        Command::new("/bin/sh").arg("-c").arg(script).status().ok();
    }

    pub fn kill(&mut self) {
        self.child.kill().ok();
    }

    /// Waits for the end, at most so long.
    pub fn end(mut self, seconds: u64) -> Result<Ended> {
        let limit = self.began.elapsed() + Duration::from_secs(seconds);
        let hung = self.wait(limit, || false);
        if hung {
            self.kill();
        }
        let status: ExitStatus = self.child.wait().context("cannot wait")?;
        let took = self.began.elapsed();
        let text = |reader: Reader| {
            let bytes = reader.join().unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (out, err) = (text(self.out), text(self.err));
        let (code, signal) = (status.code(), status.signal());
        Ok(Ended { code, signal, hung, out, err, took })
    }
}

impl Ended {
    /// The message of an error: from the last `error:` on.
    pub fn message(&self) -> &str {
        let starts = |at: &usize| *at == 0 || self.err[..*at].ends_with('\n');
        let all = self.err.match_indices("error: ").map(|(at, _)| at);
        let last = all.filter(starts).last().unwrap_or(self.err.len());
        self.err[last..].trim_end()
    }

    /// Its exit code, or the signal that ended it.
    pub fn how(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exit {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "no status".into(),
        }
    }

    /// The last words that say something.
    pub fn last_line(&self) -> String {
        let line = match self.message() {
            "" => self.err.trim_end().lines().last().unwrap_or_default(),
            message => message,
        };
        line.chars().take(300).collect()
    }
}
