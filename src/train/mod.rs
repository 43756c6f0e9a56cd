//! The fine-tune: one visible loop, its state on disk, its log.

mod adapters;
mod events;
mod fit;
mod log;
mod loss;
mod predict;
mod run;
mod settings;
mod state;

pub use adapters::{AdapterFlags, InitType};
pub use fit::{Outcome, fit};
pub use log::{Log, StepLog};
pub use loss::{batch_loss, mean_loss};
pub use predict::{Prediction, exact_match, predict};
pub use run::{Base, Run};
pub use settings::{
    ComputeDtype, OptimizerType, QuantType, SchedulerType, Settings, Switch, Task,
    When,
};
pub use state::{latest_checkpoint, steps_per_epoch};
