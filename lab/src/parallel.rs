//! Many small runs, one per core at a time.
use downhill::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `work(0)` to `work(count - 1)`, each on one core, under a progress bar; the results
/// in that order.
///
/// # Errors
/// The first one, in the same order.
pub fn parallel<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    // On standard error; nothing shows where that is not a terminal.
    let bar = ProgressBar::new(count as u64).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let next = AtomicUsize::new(0);
    let worker = || {
        tch::set_num_threads(1); // matrices this small are not worth sharing
        let mut done = vec![];
        while let i = next.fetch_add(1, Ordering::Relaxed)
            && i < count
        {
            done.push((i, work(i)));
            bar.inc(1);
        }
        done
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = tch::get_num_threads();
    let mut done = std::thread::scope(|s| {
        let workers: Vec<_> = (0..cores).map(|_| s.spawn(worker)).collect();
        let joined = workers.into_iter().map(|w| match w.join() {
            Ok(runs) => runs,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect::<Vec<_>>()
    });
    tch::set_num_threads(threads);
    bar.finish_and_clear();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// `work(job, seed)` for each of so many jobs and each seed, by [`parallel`]; the runs
/// of a job come back together.
///
/// # Errors
/// The first one, in the same order.
pub fn by_seed<T: Send>(
    jobs: usize,
    seeds: Range<u64>,
    work: impl Fn(usize, u64) -> Result<T> + Sync,
) -> Result<Vec<Vec<T>>> {
    let each = (seeds.end - seeds.start) as usize;
    let all =
        parallel(jobs * each, |i| work(i / each, seeds.start + (i % each) as u64))?;
    let mut all = all.into_iter();
    Ok((0..jobs).map(|_| all.by_ref().take(each).collect()).collect())
}
