//! The fine-tune: one visible loop, its state on disk, its log.

mod adapters;
mod base;
mod divergence;
mod earlier;
mod evaluate;
mod events;
mod fit;
mod head;
mod late;
mod log;
mod loss;
mod memory;
mod metrics;
mod need;
mod output;
mod predict;
mod report;
mod rows;
mod run;
mod schedules;
mod settings;
mod state;

pub use adapters::{AdapterFlags, InitType};
pub use base::Base;
pub use divergence::{divergence, predictions};
pub use evaluate::{Evaluation, Metrics};
pub use fit::{Outcome, fit};
pub use head::{Head, saved_labels};
pub use log::{Log, StepLog};
pub use loss::{batch_loss, mean_loss};
pub use memory::Memory;
pub use metrics::{Confusion, mae, r2};
pub use need::Sketch;
pub use output::{abandon, check_outputs};
pub use predict::{Prediction, exact_match, predict};
pub use rows::Rows;
pub use run::Run;
pub use settings::{
    ComputeDtype, OptimizerType, QuantType, SchedulerType, Settings, Switch, Task,
    When,
};
pub use state::{latest_checkpoint, steps_per_epoch};
