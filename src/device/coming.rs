//! Numbers that a GPU may still be computing.
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor, no_grad};

/// A few numbers on their way into host memory, and behind them a stamp, which is there
/// when they are. To fetch them when they are needed and not before leaves the GPU with
/// work meanwhile.
#[derive(Debug)]
pub struct Coming {
    numbers: Tensor,
    stamp: Tensor,
    expected: i64,
    home: Device,
}

/// How long to look for numbers before libtorch is asked to wait: it tells as well what
/// went wrong on the device.
const PATIENCE: Duration = Duration::from_secs(2);

impl Coming {
    /// Sends `numbers` [n] off.
    pub fn new(numbers: &Tensor) -> Self {
        // One of its own, and like no other number: libtorch hands out memory again
        // with what was left in it, and that would pass for the stamp.
        static NEXT: AtomicI64 = AtomicI64::new(0x5EED_57A3_0000_0000);
        let expected = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = numbers.device();
        no_grad(|| {
            let stamp = Tensor::full(1, expected, (Kind::Int64, home));
            let numbers = fetched(&numbers.to_kind(Kind::Double));
            Self { numbers, stamp: fetched(&stamp), expected, home }
        })
    }

    /// Them, as soon as they are there.
    pub fn wait(&self) -> Vec<f64> {
        let began = Instant::now();
        let mut naps = 0;
        while self.stamp.int64_value(&[0]) != self.expected {
            match self.home {
                Device::Cuda(i) if began.elapsed() > PATIENCE => {
                    Cuda::synchronize(i as i64);
                }
                // A token takes a millisecond, a step of training a hundred.
                _ if naps < 1000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
            naps += 1;
        }
        (0..self.numbers.numel() as i64)
            .map(|i| self.numbers.double_value(&[i]))
            .collect()
    }
}

/// In host memory that the device writes by itself, some time.
fn fetched(t: &Tensor) -> Tensor {
    t.to_device_(Device::Cpu, t.kind(), true, true)
}
