//! What a setting costs: time and memory.
use super::peak;
use super::tables::{Model, Setting, Task, fit, loss, parts};
use downhill::Result;
use downhill::data::Scale;
use downhill::nn::Mode;
use tch::{Device, Kind, Tensor};

/// Milliseconds of an epoch on one core: the least of three runs of four epochs.
///
/// # Errors
/// As [`fit`].
pub fn clock(task: &Task, s: Setting, seed: u64) -> Result<f64> {
    let s = Setting { epochs: 4, patience: 4, ..s };
    let threads = tch::get_num_threads();
    tch::set_num_threads(1); // as for the runs side by side
    let run = |_| Ok(fit(task, s, seed)?.seconds * 1e3 / 4.);
    let times = (0..3).map(run).collect::<Result<Vec<_>>>();
    tch::set_num_threads(threads);
    Ok(times?.into_iter().fold(f64::INFINITY, f64::min))
}

/// Megabytes by which a forward and backward pass over `batch` rows raises the peak of
/// the process; 0 where the system does not tell.
///
/// # Errors
/// As [`parts`].
pub fn memory(task: &Task, batch: i64) -> Result<f64> {
    let (encoder, [learn, ..]) = parts(task, Scale::Standard, 0)?;
    let model = Model::new(&encoder, 2, 0)?;
    let rows = Tensor::arange(batch, (Kind::Int64, Device::Cpu))
        .remainder(learn.y.size()[0]);
    let batch = learn.pick(&rows);
    let bytes = peak(|| {
        let y = model.forward(&batch.x, Mode::Train { seed: 0, step: 0 })?;
        loss(task, &y, &batch.y).backward();
        Ok(())
    })?;
    Ok(bytes.unwrap_or(0.) / 1024f64.powi(2))
}
