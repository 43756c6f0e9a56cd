//! Ctrl-C, and what a queue or a closed terminal sends: SIGINT, SIGTERM, SIGHUP. In
//! training the first one ends after the step, with the state saved; at any other time,
//! and the second one always, the process ends at once. The exit code is 128 and the
//! signal's number, as a shell gives it.
//!
//! The process ends without destructors: other threads may be computing with what those
//! would take away.
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

/// Set when a signal ends the process now, so that the main thread, which may find its
/// files gone, says nothing of it.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What the thread that waits for signals shares with the work.
#[derive(Default)]
pub(super) struct Watch {
    /// Asked to stop: to be read by [`downhill::train::fit`].
    pub(super) stop: Arc<AtomicBool>,
    /// Whether a step can be finished and saved.
    training: Arc<AtomicBool>,
    signal: Arc<AtomicI32>,
}

impl Watch {
    /// From here on a signal lets the step be finished, if `on`; or ends at once.
    pub(super) fn training(&self, on: bool) {
        self.training.store(on, SeqCst);
    }

    /// The exit code of the signal that came.
    pub(super) fn code(&self) -> u8 {
        (128 + self.signal.load(SeqCst)) as u8
    }
}

/// Waits for signals, on a thread. Those that the process was started to ignore stay
/// ignored (`nohup`, a job in the background of a script). `clean` removes what the
/// command has half done, before it ends at once.
pub(super) fn watch(clean: impl Fn() + Send + 'static) -> Result<Watch> {
    let watch = Watch::default();
    let again = Arc::new(AtomicBool::new(false));
    let ignored = ignored();
    let mut taken = vec![];
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if ignored >> (signal - 1) & 1 == 0 {
            register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            taken.push(signal);
        }
    }
    let mut signals = Signals::new(taken)?;
    let Watch { stop, training, signal } = &watch;
    let (stop, training, came) = (stop.clone(), training.clone(), signal.clone());
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            came.store(signal, SeqCst);
            again.store(true, SeqCst);
            if !training.load(SeqCst) {
                ENDING.store(true, SeqCst);
                clean();
                exit(128 + signal);
            }
            stop.store(true, SeqCst);
            eprintln!("\nstopping after this step (Ctrl-C again: at once)");
        }
    })?;
    Ok(watch)
}

/// Signals that end the command at once, with nothing half-written left in `folders`.
pub(super) fn at_once<const N: usize>(folders: [PathBuf; N]) -> Result<Watch> {
    watch(move || {
        folders.iter().for_each(|dir| downhill::checkpoint::atomic::abandon(dir))
    })
}

/// Where a new folder `out` is written until it is whole.
pub(super) fn beside(out: &Path) -> [PathBuf; 2] {
    let out = downhill::checkpoint::place::real(out);
    [out.parent().unwrap_or(&out).to_path_buf(), out]
}

/// Waits for the end, where a signal has asked for it.
pub(super) fn hold() {
    while ENDING.load(SeqCst) {
        std::thread::park();
    }
}

/// The signals that are ignored, a bit for each, as Linux tells.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}
