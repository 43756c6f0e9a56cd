//! Other people's programs, run where they can do no harm: the regular expressions of
//! a tokenizer and the Jinja of a chat template.
use std::{
    cell::RefCell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{RecvTimeoutError, SendError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// The name of the threads whose panics are caught, and said better.
const NAME: &str = "downhill: guarded";

/// Enough for what nests as deep as is let through; only what is touched takes memory.
const STACK: usize = 64 << 20;

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was not done in time. Its thread goes on until the process ends.
    Late,
    /// It panicked.
    Panic(String),
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The way to the thread that works for this one. It is kept for the next job,
    /// since to begin a thread takes longer than most jobs do.
    static WORKER: RefCell<Option<SyncSender<Job>>> = const { RefCell::new(None) };
}

fn hand_over(mut job: Job) -> io::Result<()> {
    WORKER.with_borrow_mut(|worker| {
        if let Some(jobs) = worker {
            match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(SendError(back)) => job = back,
            }
        }
        let (sender, jobs) = sync_channel::<Job>(1);
        let thread = thread::Builder::new().name(NAME.into()).stack_size(STACK);
        thread.spawn(move || jobs.into_iter().for_each(|job| job()))?;
        let _ = sender.send(job);
        *worker = Some(sender);
        Ok(())
    })
}

/// Runs `job` on a thread beside this one, for at most `limit`: a panic is an error, and
/// so is what takes too long.
pub(super) fn guarded<T: Send + 'static>(
    limit: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (done, result) = sync_channel(1);
    let run = move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
    };
    hand_over(Box::new(run))
        .map_err(|e| Failure::Panic(format!("no thread: {e}")))?;
    match result.recv_timeout(limit) {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            Err(Failure::Panic(brief(text.unwrap_or("it panicked"))))
        }
        Err(RecvTimeoutError::Timeout) => {
            // That thread has no time for others.
            WORKER.set(None);
            Err(Failure::Late)
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Failure::Panic("its thread ended".into()))
        }
    }
}

/// From now on a panic that [`Tokenizer`](super::Tokenizer) catches says nothing of
/// its own on stderr.
pub fn quiet_when_caught() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().name() != Some(NAME) {
            loud(info);
        }
    }));
}

/// Somebody else's words, fit for a message: on one line, and not too many.
pub(super) fn brief(words: &str) -> String {
    const MOST: usize = 300;
    let mut text = String::new();
    for c in words.trim_end().chars() {
        if text.len() >= MOST {
            text.push_str(" ...");
            break;
        }
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_endless_loops_are_errors() {
        let second = Duration::from_secs(1);
        assert_eq!(guarded(second, || 3), Ok(3));
        let panic = guarded(second, || -> i32 { panic!("a\n{}", "b".repeat(999)) });
        let Err(Failure::Panic(what)) = panic else { panic!("no panic") };
        assert!(what.starts_with("a\\nbbb") && what.len() < 310, "{what}");
        let late = guarded(Duration::from_millis(20), move || thread::sleep(second));
        assert_eq!(late, Err(Failure::Late));
        // The next job does not wait for it.
        assert_eq!(guarded(second / 2, || 4), Ok(4));
    }
}
